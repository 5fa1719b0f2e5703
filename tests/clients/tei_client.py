"""The real `huggingface_hub` client against a running Cutover, as a text-embeddings-inference server.

    pip install -r tei.txt
    python tei_client.py http://127.0.0.1:8080 embed '"a text"'

Prints what the client gives for the text (or the list of texts) as JSON.
"""

import json
import sys

from huggingface_hub import InferenceClient


def main():
    url, what, text = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
    client = InferenceClient(url, timeout=60)
    if what == "embed":
        print(json.dumps(client.feature_extraction(text, normalize=True, truncate=True).tolist()))
    else:
        told = client.text_classification(text)
        # Of the flat list that TEI answers to one text, the client gives the first element.
        print(json.dumps(dict(told) if isinstance(told, dict) else [dict(one) for one in told]))


main()
