"""``/slots/{id}?action=…``: saves, restores or erases what is kept of the text that was answered there last."""

from tpi.api.errors import Problem
from tpi.api.llamacpp.schema import SlotRequest
from tpi.api.service import Service
from tpi.api.streams import Body
from tpi.engine.slots import Slots


class SlotRoutes:
    def __init__(self, service: Service) -> None:
        self._service = service

    async def change(self, slot_id: int, action: str = "", asked: SlotRequest | None = None) -> Body:
        """As long as a save or a restore takes, no token is computed."""
        slots = self._service.slots
        if action == "erase":
            n_erased = await self._service.work(lambda: slots.erase(slot_id))
            return {"id_slot": slot_id, "n_erased": n_erased}
        works = {"save": _save, "restore": _restore}
        if not slots.are_saved:
            raise Problem(501, "slots are neither saved nor restored here: serve with a folder for them")
        if action not in works:
            raise Problem(400, f"the action {action[:20]!r} is none: save, restore or erase a slot", param="action")
        filename = asked.filename if asked is not None else None
        if filename is None:
            raise Problem(400, "there is no filename: name what is saved", param="filename")
        name, work = filename, works[action]
        return await self._service.work(lambda: {"id_slot": slot_id, "filename": name, **work(slots, slot_id, name)})


def _save(slots: Slots, slot_id: int, name: str) -> Body:
    done = slots.save(slot_id, name)
    return {"n_saved": done.n_tokens, "n_written": done.n_bytes, "timings": {"save_ms": done.took_s * 1e3}}


def _restore(slots: Slots, slot_id: int, name: str) -> Body:
    done = slots.restore(slot_id, name)
    return {"n_restored": done.n_tokens, "n_read": done.n_bytes, "timings": {"restore_ms": done.took_s * 1e3}}
