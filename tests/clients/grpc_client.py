"""The real `tritonclient[grpc]` against a running Cutover.

    pip install -r grpc.txt
    python grpc_client.py 127.0.0.1:9000 MODEL INPUT [--ca FILE] [--key KEY] < elements.json

Reads a list of strings (files in base64 after `base64:`) and prints what the client gives as JSON: metadata, configuration,
readiness, statistics, and every output, each by its shape and flat values; once alone, and once of several calls at a time.
"""

import argparse
import base64
import json
import queue
import sys

import grpc
import numpy as np
from tritonclient.grpc import InferenceServerClient, InferInput, InferRequestedOutput
from tritonclient.utils import InferenceServerException


def told(result):
    response = result.get_response(as_json=True)
    outputs = {}
    for one in response["outputs"]:
        values = result.as_numpy(one["name"])
        flat = [v.decode() if isinstance(v, bytes) else v for v in values.flatten().tolist()]
        outputs[one["name"]] = {"shape": list(values.shape), "values": flat}
    return {"id": response.get("id"), "version": response["model_version"], "outputs": outputs}


def stamps(address, model, name, elements):
    """The metadata of an answer, which tritonclient keeps to itself: asked with plain gRPC and its messages."""
    from tritonclient.grpc import service_pb2, service_pb2_grpc

    with grpc.insecure_channel(address) as channel:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        given = service_pb2.ModelInferRequest(model_name=model)
        tensor = given.inputs.add(name=name, datatype="BYTES", shape=[len(elements)])
        tensor.contents.bytes_contents.extend(elements)
        answer, call = stub.ModelInfer.with_call(given)
        return {"metadata": dict(call.initial_metadata()), "typed": list(answer.outputs[-1].contents.fp32_contents)}


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("address"), parser.add_argument("model"), parser.add_argument("input")
    parser.add_argument("--ca"), parser.add_argument("--key")
    asked = parser.parse_args()
    elements = json.load(sys.stdin)
    if elements and elements[0].startswith("base64:"):
        elements = [base64.b64decode(element[7:]) for element in elements]
    else:
        elements = [element.encode() for element in elements]
    headers = {"authorization": f"Bearer {asked.key}"} if asked.key else None
    secure = {"ssl": True, "root_certificates": asked.ca} if asked.ca else {}
    with InferenceServerClient(asked.address, **secure) as client:
        said = {"live": client.is_server_live(), "ready": client.is_server_ready()}
        if headers:
            try:
                client.get_server_metadata()
            except InferenceServerException as error:
                said["without_key"] = error.status()
        said |= {
            "model_ready": client.is_model_ready(asked.model, headers=headers),
            "nothing_ready": client.is_model_ready("nothing", headers=headers),
            "server": client.get_server_metadata(headers=headers, as_json=True),
            "metadata": client.get_model_metadata(asked.model, headers=headers, as_json=True),
            "config": client.get_model_config(asked.model, headers=headers, as_json=True)["config"],
            "index": client.get_model_repository_index(headers=headers, as_json=True).get("models"),
        }
        given = InferInput(asked.input, [len(elements)], "BYTES")
        given.set_data_from_numpy(np.array(elements, dtype=object))
        infer = lambda **more: client.infer(asked.model, [given], headers=headers, **more)
        said["alone"] = told(infer(request_id="seven", timeout=30_000_000))
        last = said["metadata"]["outputs"][-1]["name"]
        said["only"] = list(told(infer(outputs=[InferRequestedOutput(last)]))["outputs"])
        answers = queue.Queue()
        for _ in range(20):
            callback = lambda result, error: answers.put(error or result)
            client.async_infer(asked.model, [given], callback, headers=headers)
        said["together"] = []
        for _ in range(20):
            answer = answers.get(timeout=60)
            if isinstance(answer, Exception):
                raise answer
            said["together"].append(told(answer))
        for name, wrong in [
            ("nothing", lambda: client.infer("nothing", [given], headers=headers)),
            ("version", lambda: infer(model_version="nine")),
            ("shared memory", lambda: client.get_system_shared_memory_status(headers=headers)),
        ]:
            try:
                wrong()
            except InferenceServerException as error:
                said[name] = [error.status(), error.message()]
        said["statistics"] = client.get_inference_statistics(asked.model, headers=headers, as_json=True)
    if not asked.ca and not asked.key:
        said["stamps"] = stamps(asked.address, asked.model, asked.input, elements)
    print(json.dumps(said))


main()
