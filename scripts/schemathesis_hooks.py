"""For scripts/schemathesis.sh: who calls, and what /openapi.json cannot say of a valid request."""

import os
import re

import requests
import schemathesis

UUID_V7 = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}(-7[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12})", re.IGNORECASE)


def sign_in():
    body = {"email": os.environ["EMAIL"], "password": os.environ["PASSWORD"]}
    answer = requests.post(f"{os.environ['URL']}/v1/auth/sign-in", json=body, timeout=10)
    answer.raise_for_status()
    return answer.json()


@schemathesis.auth(refresh_interval=None)
class Caller:
    """The person of EMAIL and PASSWORD, with one token. Signing out ends a token for good: it gets its own each time."""

    main = None

    def get(self, case, context):
        if case.operation.path == "/v1/auth/sign-out":
            return sign_in()["access_token"]
        Caller.main = Caller.main or sign_in()
        return Caller.main["access_token"]

    def set(self, case, data, context):
        case.headers["Authorization"] = f"Bearer {data}"


def of_the_past(value):
    """A UUIDv7 holds a time, and any up to the year 10889 fits the form: made to be of 2023. Anything else stays."""
    made = UUID_V7.fullmatch(value) if isinstance(value, str) else None
    return f"018bcfe5-6800{made[1]}" if made else value


@schemathesis.hook
def before_call(context, case, kwargs):
    headers, query, body = case.headers, case.query, case.body
    if Caller.main and case.path_parameters.get("device") == Caller.main["device"]:
        # The token that all other calls need would end with it.
        case.path_parameters["device"] = sign_in()["device"]
    if "Idempotency-Key" in headers:
        headers["Idempotency-Key"] = of_the_past(headers["Idempotency-Key"])
    if isinstance(body, dict) and "client_msg_id" in body:
        body["client_msg_id"] = of_the_past(body["client_msg_id"])
    # What shall be refused stays as it is.
    valid = case.meta is None or case.meta.generation.mode.is_positive
    if not valid:
        return
    # Only people and messages that exist will do.
    if isinstance(body, dict) and isinstance(body.get("members"), list):
        body["members"] = [os.environ["OTHER"] for _ in body["members"]]
    if isinstance(body, dict) and body.get("reply_to"):
        body["reply_to"] = 1
    if case.operation.label == "POST /v1/rooms/{room}/messages" and not body.get("client_msg_id"):
        # One of both is needed, wherever it stands.
        headers.setdefault("Idempotency-Key", "018bcfe5-6800-7000-8000-000000000000")
    if query.get("before") is not None and query.get("after") is not None:
        # One of both, not both.
        del query["after"]
    # A cursor is what the server gave, not any text.
    query.pop("cursor", None)
