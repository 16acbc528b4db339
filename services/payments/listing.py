"""Pages of payments, by filters."""

from services.chassis.database.transactions import rows
from services.payments.requests import PaymentFilter, Position
from services.payments.store import record_of
from topsmile.payments.v1 import payments_pb2 as pb

LIST = """
    SELECT created_at, payment_id, caller, record FROM payment
    WHERE {conditions}
    ORDER BY created_at DESC, payment_id DESC LIMIT :limit
"""
UNFILLED = "SELECT payment_id, record FROM payment WHERE created_at = 0 LIMIT 500"
FILL = "UPDATE payment SET created_at = :created_at, patient_id = :patient_id WHERE payment_id = :payment_id"


async def list_payments(filter: PaymentFilter, owner: str | None, position: Position, limit: int) -> list[pb.Payment]:
    """Return up to `limit` payments after a position, the newest first. `owner` None: of all callers."""
    equal = {
        "caller": owner,
        "appointment_id": filter.appointment_id,
        "patient_id": filter.patient_id,
        "status": filter.status,
    }
    values: dict[str, object] = {column: value for column, value in equal.items() if value}
    conditions = [f"{column} = :{column}" for column in values]
    if filter.created_from:
        conditions.append("created_at >= :created_from")
        values["created_from"] = filter.created_from
    # One bound serves the filter and the page: the page begins at the earlier one.
    created_at, payment_id = min(position, (filter.created_before, ""))
    conditions.append("(created_at, payment_id) < (:before_created_at, :before_payment_id)")
    sql = LIST.format(conditions=" AND ".join(conditions))
    found = await rows(sql, before_created_at=created_at, before_payment_id=payment_id, limit=limit, **values)
    return [record_of(row) for row in found]


async def fill_columns() -> int:
    """Fill the columns of lists for payments that an older version stored. Return how many were filled."""
    found = await rows(UNFILLED)
    for row in found:
        record = pb.Payment.FromString(bytes(row["record"]))
        created_at = max(record.create_time.ToMilliseconds(), 1)
        await rows(FILL, payment_id=row["payment_id"], patient_id=record.patient_id, created_at=created_at)
    return len(found)
