"""Write expected.json beside this file: what transformers' apply_chat_template makes of conversations.json.

    pip install transformers==4.57.1 jinja2==3.1.6
    python render.py [TEMPLATE CONVERSATIONS EXPECTED]

Every template here, written for these tests in the manner of the models that are named so often, renders every conversation
plain, with the beginning of an answer, and with its last message continued. Where a template raises an exception its own
words are written, where it fails otherwise `null`.

Arguments of calls that are JSON objects as text are given to transformers as objects, as its documentation has them; OpenAI's
clients send text.
"""

import copy
import datetime as time
import json
import sys
from pathlib import Path

from jinja2.exceptions import TemplateError, UndefinedError
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast
from transformers.utils import chat_template_utils

HERE = Path(__file__).resolve().parent
NOW = 1_709_214_123


class Clock(time.datetime):
    @classmethod
    def now(cls, tz=None):
        return cls.fromtimestamp(NOW, time.timezone.utc)


chat_template_utils.datetime = Clock

WAYS = {
    "plain": {},
    "begin": {"add_generation_prompt": True},
    "continue": {"continue_final_message": True},
}


def tokenizer(template):
    inner = Tokenizer(models.WordLevel({"<unk>": 0}, unk_token="<unk>"))
    return PreTrainedTokenizerFast(
        tokenizer_object=inner, bos_token="<s>", eos_token="</s>", unk_token="<unk>", chat_template=template
    )


def opened(message):
    for call in message.get("tool_calls") or []:
        if message["role"] == "assistant" and isinstance(call["function"]["arguments"], str):
            try:
                arguments = json.loads(call["function"]["arguments"].strip() or "{}")
            except ValueError:
                continue
            if isinstance(arguments, dict):
                call["function"]["arguments"] = arguments
    return message


def rendered(tokenizer, case, way):
    messages = [opened(message) for message in copy.deepcopy(case["messages"])]
    try:
        text = tokenizer.apply_chat_template(
            messages, tools=case.get("tools"), tokenize=False, **case.get("variables", {}), **way
        )
        return {"text": text}
    except TemplateError as error:
        undefined = isinstance(error, UndefinedError) or type(error) is not TemplateError
        return {"error": None if undefined else str(error)}
    except (TypeError, ValueError, KeyError, AttributeError):
        return {"error": None}


def table(template, cases):
    made = tokenizer(template)
    return {case["name"]: {name: rendered(made, case, way) for name, way in WAYS.items()} for case in cases}


def main():
    if len(sys.argv) == 4:
        template, conversations, expected = map(Path, sys.argv[1:])
        made = table(template.read_text(), json.loads(conversations.read_text()))
        expected.write_text(json.dumps(made, ensure_ascii=False))
        return
    cases = json.loads((HERE / "conversations.json").read_text())
    made = {path.name: table(path.read_text(), cases) for path in sorted(HERE.glob("*.jinja"))}
    (HERE / "expected.json").write_text(json.dumps(made, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
