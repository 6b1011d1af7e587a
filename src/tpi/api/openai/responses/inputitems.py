"""What a response was made of, as items, page by page: messages back to items. Pure."""

from collections.abc import Iterator, Sequence

from tpi.api.errors import Problem
from tpi.api.openai.responses.store import Kept
from tpi.api.streams import Body
from tpi.engine.turns import Message


def page(kept: Kept, n_most: int, after: str | None, *, is_ascending: bool) -> Body:
    """At most so many items, those behind the item ``after`` if there is one.

    Raises:
        Problem: there is no item ``after``.
    """
    items = input_items(kept)
    if not is_ascending:
        items.reverse()
    if after is not None:
        place = next((place for place, item in enumerate(items) if item["id"] == after), None)
        if place is None:
            raise Problem(404, f"the response has no item {after[:80]!r}", code="not_found", param="after")
        del items[: place + 1]
    data = items[:n_most]
    ids = [item["id"] for item in data] or [""]
    return {
        "object": "list",
        "data": data,
        "first_id": ids[0],
        "last_id": ids[-1],
        "has_more": len(items) > len(data),
    }


def input_items(kept: Kept) -> list[Body]:
    """All that was said before the response, the oldest first; ids are the same every time."""
    items = [item for message in kept.messages[:-1] for item in _items_of(message)]
    mark = kept.body["id"].removeprefix("resp_")
    return [{"id": f"{item.pop('prefix')}_{mark}_{number}", **item} for number, item in enumerate(items)]


def _items_of(message: Message) -> Iterator[Body]:
    """Thoughts, words, calls: in the order in which ``read_input`` joins them."""
    if message.role == "tool":
        yield {"prefix": "fco", "type": "function_call_output", "call_id": message.tool_call_id} | _done(
            output=message.content
        )
        return
    if message.reasoning:
        thoughts = [{"type": "reasoning_text", "text": message.reasoning}]
        yield {"prefix": "rs", "type": "reasoning", "summary": []} | _done(content=thoughts)
    is_answer = message.role == "assistant"
    if message.content or not is_answer:
        part = {"type": "output_text", "annotations": []} if is_answer else {"type": "input_text"}
        content: Sequence[Body] = [part | {"text": message.content}]
        yield {"prefix": "msg", "type": "message", "role": message.role} | _done(content=content)
    for call in message.tool_calls:
        called = {"call_id": call.id, "name": call.name, "arguments": call.arguments}
        yield {"prefix": "fc", "type": "function_call"} | _done(**called)


def _done(**more: object) -> Body:
    return {"status": "completed", **more}
