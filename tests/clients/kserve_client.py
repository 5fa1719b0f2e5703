"""The real KServe SDK against a running Cutover, over HTTP and over gRPC.

    pip install -r kserve.txt
    python kserve_client.py http://127.0.0.1:8080 127.0.0.1:8081 MODEL INPUT < elements.json

Reads a list of strings and prints what the clients give as JSON: by the way it was asked, readiness and the outputs.
"""

import asyncio
import json
import sys

import grpc
import httpx
import numpy as np
from kserve import InferenceGRPCClient, InferenceRESTClient, InferInput, InferRequest, RESTConfig


def request(model, name, elements, binary):
    given = InferInput(name, [len(elements)], "BYTES")
    given.set_data_from_numpy(np.array(elements, dtype=object), binary_data=binary)
    return InferRequest(model_name=model, infer_inputs=[given], request_id="seven")


def told(response):
    outputs = {one.name: one.as_numpy() for one in response.outputs}
    values = {name: [list(array.shape), array.flatten().tolist()] for name, array in outputs.items()}
    return {"id": response.id, "model": response.model_name, "version": response.model_version, "outputs": values}


async def main():
    url, address, model, name = sys.argv[1:]
    elements = json.load(sys.stdin)
    said = {}
    rest = InferenceRESTClient(RESTConfig(protocol="v2", retries=0))
    said["rest"] = [await rest.is_server_live(url), await rest.is_server_ready(url), await rest.is_model_ready(url, model)]
    for how in ("binary", "json"):
        asked = request(model, name, elements, how == "binary")
        said[f"rest {how}"] = told(await rest.infer(url, asked, model_name=model))
    try:
        await rest.infer(url, request("nothing", name, elements, True), model_name="nothing")
    except httpx.HTTPStatusError as error:
        said["rest nothing"] = [error.response.status_code, str(error)]
    async with InferenceGRPCClient(address, retries=0) as client:
        said["grpc"] = [await client.is_server_live(), await client.is_server_ready(), await client.is_model_ready(model)]
        for how in ("binary", "json"):
            asked = request(model, name, elements, how == "binary")
            said[f"grpc {how}"] = told(await client.infer(asked))
        try:
            await client.infer(request("nothing", name, elements, True))
        except grpc.RpcError as error:
            said["grpc nothing"] = [error.code().value[0], error.details()]
    print(json.dumps(said))


asyncio.run(main())
