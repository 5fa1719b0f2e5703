"""The real `tritonclient[grpc]` changes versions of a running Cutover.

    python grpc_repository.py 127.0.0.1:9000 load|unload MODEL [TOKEN]

Prints nothing, or the status and message of what was refused.
"""

import sys

from tritonclient.grpc import InferenceServerClient
from tritonclient.utils import InferenceServerException


def main():
    address, what, model, *token = sys.argv[1:]
    headers = {"authorization": f"Bearer {token[0]}"} if token else None
    with InferenceServerClient(address) as client:
        try:
            change = client.load_model if what == "load" else client.unload_model
            change(model, headers=headers)
        except InferenceServerException as error:
            print(error.status(), error.message())


main()
