"""Has a model call tools through the official `openai` package, as its users do.

    tools_client.py URL ORDER

ORDER is a request, as JSON, to which the model says "Let me see." and calls weather(town, days) and noop().
"""

import json
import sys

from openai import OpenAI

url, order = sys.argv[1], json.loads(sys.argv[2])
client = OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)
own = ("repetition_penalty",)
asked = {key: value for key, value in order.items() if key not in own}
asked["extra_body"] = {key: order[key] for key in own if key in order}


def check(name, passed, seen=""):
    assert passed, f"{name}: {seen}"
    print(f"{name} passed")


def told(calls):
    return [(call.function.name, json.loads(call.function.arguments)) for call in calls]


expected = [("weather", {"town": "Bonn", "days": 2}), ("noop", {})]
choice = client.chat.completions.create(**asked).choices[0]
check("calls are told", told(choice.message.tool_calls) == expected and choice.finish_reason == "tool_calls", choice)
check("what is said beside is content", choice.message.content == "Let me see.", choice)

# Put together as the package does it itself; it does so of strict tools only.
strict = [{**tool, "function": {**tool["function"], "strict": True}} for tool in asked["tools"]]
with client.chat.completions.stream(**{**asked, "tools": strict}) as stream:
    done = [event for event in stream if event.type == "tool_calls.function.arguments.done"]
    final = stream.get_final_completion().choices[0]
check("a stream has the same calls", told(final.message.tool_calls) == expected, final)
check("a stream has the same content", (final.message.content, final.finish_reason)
      == (choice.message.content, choice.finish_reason), final)
check("each call is told when it is complete", [event.name for event in done] == ["weather", "noop"], done)

# The loop of every agent: the answer is handed back whole, with what the tools say.
history = asked["messages"] + [choice.message.model_dump()]
history += [{"role": "tool", "tool_call_id": call.id, "content": "ok"} for call in choice.message.tool_calls]
again = client.chat.completions.create(**{**asked, "messages": history})
check("calls are taken back", again.choices[0].message.role == "assistant", again)
plain = client.chat.completions.create(**{**asked, "tool_choice": "none"}).choices[0].message
check("an answer that calls nothing has no calls", plain.tool_calls is None, plain)
history = asked["messages"] + [plain.model_dump(), {"role": "user", "content": "and now?"}]
check("it is taken back, too", client.chat.completions.create(**{**asked, "messages": history}).choices)
print("all passed")
