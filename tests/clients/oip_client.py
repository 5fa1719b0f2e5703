"""The real `tritonclient[http]` against a running Cutover.

    pip install -r oip.txt
    python oip_client.py 127.0.0.1:8080 MODEL INPUT JSON_OR_BINARY < elements.json

Reads a list of strings (files in base64 after `base64:`) and prints what the client gives as JSON: metadata, configuration,
readiness, and every output, each by its shape and flat values.
"""

import base64
import json
import sys

import numpy as np
from tritonclient.http import InferenceServerClient, InferInput, InferRequestedOutput
from tritonclient.utils import InferenceServerException


def main():
    address, model, name, how = sys.argv[1:]
    elements = json.load(sys.stdin)
    if elements and elements[0].startswith("base64:"):
        elements = [base64.b64decode(element[7:]) for element in elements]
    else:
        elements = [element.encode() for element in elements]
    binary = how == "binary"
    with InferenceServerClient(address, network_timeout=60) as client:
        said = {
            "live": client.is_server_live(),
            "ready": client.is_server_ready(),
            "model_ready": client.is_model_ready(model),
            "nothing_ready": client.is_model_ready("nothing"),
            "server": client.get_server_metadata(),
            "metadata": client.get_model_metadata(model),
            "config": client.get_model_config(model),
            "index": client.get_model_repository_index(),
        }
        given = InferInput(name, [len(elements)], "BYTES")
        given.set_data_from_numpy(np.array(elements, dtype=object), binary_data=binary)
        outputs = [one["name"] for one in said["metadata"]["outputs"]]
        # With no outputs named, the client asks for all of them as bytes.
        wanted = None if binary else [InferRequestedOutput(one, binary_data=False) for one in outputs]
        result = client.infer(model, [given], outputs=wanted, request_id="seven", timeout=30_000_000)
        said["id"] = result.get_response()["id"]
        said["version"] = result.get_response()["model_version"]
        said["outputs"] = {}
        for one in outputs:
            values = result.as_numpy(one)
            flat = [v.decode() if isinstance(v, bytes) else v for v in values.flatten().tolist()]
            said["outputs"][one] = {"shape": list(values.shape), "values": flat}
        try:
            client.infer("nothing", [given])
        except InferenceServerException as error:
            said["refused"] = [error.status(), error.message()]
        said["statistics"] = client.get_inference_statistics(model)
    print(json.dumps(said))


main()
