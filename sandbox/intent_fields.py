"""The fields of a PaymentIntent, and what its customer is shown."""

import time
from typing import Any

from sandbox.state import Json

#: Parameters that become fields of the same name.
KEPT = (
    "capture_method",
    "confirmation_method",
    "customer",
    "description",
    "on_behalf_of",
    "payment_method",
    "payment_method_options",
    "receipt_email",
    "setup_future_usage",
    "shipping",
    "statement_descriptor",
    "statement_descriptor_suffix",
    "transfer_data",
    "transfer_group",
)

ABSENT: Json = dict.fromkeys(
    (
        "application",
        "application_fee_amount",
        "automatic_payment_methods",
        "canceled_at",
        "cancellation_reason",
        "customer",
        "customer_account",
        "description",
        "excluded_payment_method_types",
        "last_payment_error",
        "latest_charge",
        "next_action",
        "on_behalf_of",
        "payment_method",
        "payment_method_configuration_details",
        "processing",
        "receipt_email",
        "review",
        "setup_future_usage",
        "shipping",
        "source",
        "statement_descriptor",
        "statement_descriptor_suffix",
        "transfer_data",
        "transfer_group",
    )
)


def blank_intent() -> Json:
    return {
        "object": "payment_intent",
        "amount_capturable": 0,
        "amount_details": {"tip": {}},
        "amount_received": 0,
        "capture_method": "automatic",
        "confirmation_method": "automatic",
        "livemode": False,
        "payment_method_options": {},
        **ABSENT,
    }


def voucher(kind: str, intent: Json, params: Json, origin: str) -> Json:
    """What the customer is shown: a QR code's text, or the boleto's line."""
    options = (params.get("payment_method_options") or intent["payment_method_options"] or {}).get(kind) or {}
    page = f"{origin}/pay/{intent['id']}"
    if kind == "pix":
        expires: Any = options.get("expires_at") or int(time.time()) + int(
            options.get("expires_after_seconds") or 14_400
        )
        details: Json = {
            "data": f"00020101021226990014br.gov.bcb.pix2577sandbox.example/pix/{intent['id']}5204000053039865802BR",
            "expires_at": int(expires),
            "hosted_instructions_url": page,
            "image_url_png": f"{page}.png",
            "image_url_svg": f"{page}.svg",
        }
        return {"type": "pix_display_qr_code", "pix_display_qr_code": details}
    days = int(options.get("expires_after_days", 3))
    # 23:59:59 in São Paulo, which is three hours behind UTC all year.
    last_second = (int(time.time()) - 3 * 3600) // 86_400 * 86_400 + (days + 1) * 86_400 + 3 * 3600 - 1
    number = f"{intent['amount']:047d}"
    details = {"expires_at": last_second, "hosted_voucher_url": page, "number": number, "pdf": f"{page}.pdf"}
    return {"type": "boleto_display_details", "boleto_display_details": details}
