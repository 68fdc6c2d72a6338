"""Signs an Ethereum transaction (EIP-1559) with a TSS network, and prints it for eth_sendRawTransaction.

TSS_MANAGER says where the manager is (http://127.0.0.1:8080 where absent), TSS_TOKEN who asks.
"""

import json
import os
import sys
import time
import uuid
from urllib.error import HTTPError
from urllib.request import Request, urlopen

from eth_account import Account
from eth_account.typed_transactions import TypedTransaction

# Which of the network's keys signs, and which key derived from it: as BIP-44 has it for Ethereum, but nothing hardened,
# which no threshold key can derive.
KEY = "default"
PATH = "44/60/0/0/0"

# How long a signature may take, in seconds. It takes a fraction of one, unless signers are away.
PATIENCE = 60

# How long calls are made again while the manager is away or busy, in seconds.
RETRY = 10

MANAGER = os.environ.get("TSS_MANAGER", "http://127.0.0.1:8080").rstrip("/")
TOKEN = os.environ.get("TSS_TOKEN")

# What to do when there is nobody to ask.
WHERE = (
    "TSS_MANAGER should be the URL of a manager (`cargo run --release --bin tssctl -- devnet` starts one), "
    "and TSS_TOKEN a token, if it asks for one"
)


def main():
    if not MANAGER.startswith(("http://", "https://")):
        sys.exit(f"TSS_MANAGER={MANAGER}: expected a URL of HTTP or HTTPS\n{WHERE}")

    # Whose transaction it is. A program that moves money knows this address, and asks nobody for it.
    key = call(f"/keys/{KEY}?path={PATH}")
    sender = key["derived"]["addresses"]["ethereum"]

    # The transaction. Its nonce and fees come from a node: eth_getTransactionCount, eth_feeHistory.
    transaction = {
        "type": 2,
        "chainId": 1,
        "nonce": 0,
        "gas": 21_000,
        "maxFeePerGas": 30_000_000_000,
        "maxPriorityFeePerGas": 1_000_000_000,
        "to": "0xd8dA6BF26964aF9D7eEd9e03E53415D37aA96045",
        "value": 10_000_000_000_000_000,
    }

    # The network signs its hash. Whoever keeps the idempotency key may ask again, also after a crash, and gets the same
    # request.
    digest = TypedTransaction.from_dict(transaction).hash()
    request = {"message": digest.hex(), "encoding": "hex", "hash": "none", "key": KEY, "path": PATH}
    accepted = call("/sign", request, idempotency_key=str(uuid.uuid4()))
    signature = wait_for_signature(accepted["request_id"])

    # The signature goes into the transaction.
    signed = TypedTransaction.from_dict(
        {
            **transaction,
            "v": signature["recid"],  # the parity of y
            "r": int(signature["r"], 16),
            "s": int(signature["s"], 16),
        }
    )
    raw = signed.encode()

    # What is sent is looked at once more, as a node will.
    signer = Account.recover_transaction(raw)
    if signer != sender:
        sys.exit(f"the transaction is signed by {signer}: expected {sender}; do not send it")

    print(f"from  {sender}", file=sys.stderr)
    print("0x" + raw.hex())


def wait_for_signature(request_id):
    """The signature of a request, once it is there."""
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        answer = call(f"/signature/{request_id}?wait=10s")
        if answer["status"] == "Completed":
            return answer
        time.sleep(0.1)
    sys.exit(f"request {request_id} is not signed after {PATIENCE} s; GET /status/{request_id} says how far it is")


def call(path, body=None, idempotency_key=None):
    """What the manager answers."""
    request = Request(MANAGER + path)
    if body is not None:
        request.data = json.dumps(body).encode()
        request.add_header("Content-Type", "application/json")
    if idempotency_key is not None:
        request.add_header("Idempotency-Key", idempotency_key)
    if TOKEN is not None:
        # Not to wherever a redirect points.
        request.add_unredirected_header("Authorization", f"Bearer {TOKEN}")
    deadline = time.monotonic() + RETRY
    while True:
        pause = 1
        try:
            with urlopen(request, timeout=30) as response:
                return json.load(response)
        except HTTPError as error:
            problem = explain(error)
            if error.code not in (429, 502, 503, 504):
                sys.exit(problem)
            retry_after = error.headers.get("Retry-After", "")
            if retry_after.isdecimal():
                pause = int(retry_after)
        except OSError as error:
            problem = f"no answer from the manager at {MANAGER}: {error}\n{WHERE}"
        if time.monotonic() + pause > deadline:
            sys.exit(problem)
        time.sleep(pause)


def explain(error):
    """What the manager says is wrong (RFC 9457), or whoever is in between."""
    try:
        problem = json.load(error)
        told = f"{problem['title']} ({error.code})"
        told = f"{told}: {problem['detail']}" if "detail" in problem else told
    except (ValueError, KeyError, TypeError):
        told = f"{MANAGER} answered {error.code} {error.reason}: expected the manager of a TSS network"
    return f"{told}\n{WHERE}" if error.code == 401 else told


if __name__ == "__main__":
    main()
