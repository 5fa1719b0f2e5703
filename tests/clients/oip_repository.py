"""The real `tritonclient[http]` changes versions of a running Cutover.

    python oip_repository.py 127.0.0.1:8080 load|unload MODEL

Prints nothing, or the status and message of what was refused.
"""

import sys

from tritonclient.http import InferenceServerClient
from tritonclient.utils import InferenceServerException


def main():
    address, what, model = sys.argv[1:]
    with InferenceServerClient(address, network_timeout=60) as client:
        try:
            client.load_model(model) if what == "load" else client.unload_model(model)
        except InferenceServerException as error:
            print(error.status(), error.message())


main()
