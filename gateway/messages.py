"""Emails and texts by their ids, as JSON of their contracts."""

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from gateway.bodies import to_json
from gateway.clients import Clients
from services.chassis.errors import NotFound
from topsmile.email.v1 import email_pb2
from topsmile.sms.v1 import sms_pb2


class Messages:
    def __init__(self, clients: Clients) -> None:
        self._clients = clients

    async def get_email(self, request: Request) -> Response:
        wanted = email_pb2.GetEmailRequest(email_id=_id(request, "eml_"))
        found = await self._clients.email.call(self._clients.email_stub.GetEmail, wanted)
        return JSONResponse(to_json(found))

    async def get_sms(self, request: Request) -> Response:
        wanted = sms_pb2.GetSmsRequest(sms_id=_id(request, "sms_"))
        found = await self._clients.sms.call(self._clients.sms_stub.GetSms, wanted)
        return JSONResponse(to_json(found))


def _id(request: Request, prefix: str) -> str:
    id: str = request.path_params["id"]
    if not id.startswith(prefix):
        raise NotFound(f"the id must begin with {prefix}")
    return id
