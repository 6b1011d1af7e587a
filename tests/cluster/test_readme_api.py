"""The commands of the README that ask the API are run as they stand there, but for the port."""

import json
import re
import subprocess
from pathlib import Path
from typing import Any

from tests.cluster.serving import serve

README = Path(__file__).parents[2] / "README.md"


def commands() -> list[str]:
    """Each with the lines that it goes on in."""
    text = README.read_text().replace("\\\n", " ")
    return re.findall(r"^    (curl .*)$", text, re.MULTILINE)


def run(command: str) -> str:
    ended = subprocess.run(["/bin/sh", "-c", command], capture_output=True, text=True, timeout=60)
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


def test_the_readme_s_commands(tmp_path: Path, cache: Path) -> None:
    with serve("demo", tmp_path, cache, 2) as served:
        models, chat, stream, completion, cluster, events_told, metrics, health, *others = (
            run(
                command.replace("http://127.0.0.1:8080/v1", served.url).replace(
                    "http://127.0.0.1:8080", served.url[:-3]
                )
            )
            for command in commands()
        )
    assert [model["id"] for model in json.loads(models)["data"]] == ["demo"]
    answer: Any = json.loads(chat)
    assert answer["choices"][0]["message"]["content"] and answer["usage"]["completion_tokens"] == 40
    events = [line.removeprefix("data: ") for line in stream.splitlines() if line]
    assert events[-1] == "[DONE]" and len(events) > 30
    assert all(json.loads(event)["object"] == "chat.completion.chunk" for event in events[:-1])
    told: Any = json.loads(completion)
    n_tokens = [len(choice["logprobs"]["tokens"]) for choice in told["choices"]]
    assert len(n_tokens) == 4 and max(n_tokens) == 8 and sum(n_tokens) == told["usage"]["completion_tokens"]
    assert [rank["rank"] for rank in json.loads(cluster)["ranks"]] == [0, 1]
    assert '"n_running":0' in events_told and events_told.count("event: state\n") >= 2
    counted = re.search(r'^vllm:generation_tokens_total{model_name="demo"} (\d+)\.0$', metrics, re.MULTILINE)
    assert counted is not None and 70 < int(counted[1]) - told["usage"]["completion_tokens"] <= 80
    assert f"\nllamacpp:tokens_predicted_total {counted[1]}.0\n" in metrics
    assert json.loads(health) == {"status": "ok"}
    response, message, _, raw, vectors = (json.loads(other.splitlines()[-1]) for other in others)
    assert response["usage"]["output_tokens"] == 20 and response["output"][0]["content"][0]["text"]
    assert message["usage"]["output_tokens"] == 20 and message["content"][0]["text"]
    lines = [json.loads(line) for line in others[2].splitlines()]
    assert lines[-1]["eval_count"] == 20 and len(lines) > 10
    assert raw["tokens_predicted"] == 20 and raw["content"]
    assert len(vectors["data"]) == 2 and len(vectors["data"][0]["embedding"]) > 100
