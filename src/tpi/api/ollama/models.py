"""What Ollama's clients are told of the one model that is here."""

from datetime import UTC, datetime, timedelta

from tpi.api.ollama.schema import ShowRequest
from tpi.api.service import Service
from tpi.api.streams import Body

_SPOKEN_VERSION = "0.12.6"
"""Of Ollama, whose API this is: clients look whether it knows tools and thinking."""
_FOREVER = timedelta(days=365 * 100)


class ModelRoutes:
    def __init__(self, service: Service) -> None:
        self._service = service

    async def all(self) -> Body:
        return {"models": [self._model() | {"modified_at": self._service.about.modified.isoformat()}]}

    async def running(self) -> Body:
        until = (datetime.now(UTC) + _FOREVER).isoformat()
        more = {"expires_at": until, "size_vram": 0, "context_length": self._service.n_context}
        return {"models": [self._model() | more]}

    async def show(self, asked: ShowRequest) -> Body:
        service = self._service
        name, about = service.check_tagged(asked.model or asked.name), service.about
        sampling = service.sampling
        parameters = {"temperature": sampling.temperature, "top_k": sampling.top_k, "top_p": sampling.top_p}
        own = {name: value for name, value in about.metadata.items() if not name.startswith("tokenizer.chat_template")}
        return {
            "modelfile": f"FROM {name}\n",
            "parameters": "\n".join(f"{name} {value}" for name, value in parameters.items()),
            "template": about.template,
            "details": self._details(),
            "model_info": {"general.parameter_count": about.n_parameters, **own},
            "capabilities": service.capabilities,
            "modified_at": about.modified.isoformat(),
        }

    async def version(self) -> Body:
        return {"version": _SPOKEN_VERSION}

    def _model(self) -> Body:
        name, about = self._service.tagged_name, self._service.about
        return {
            "name": name,
            "model": name,
            "size": about.n_bytes,
            "digest": about.digest,
            "details": self._details(),
        }

    def _details(self) -> Body:
        about = self._service.about
        return {
            "parent_model": "",
            "format": "gguf",
            "family": about.architecture,
            "families": [about.architecture],
            "parameter_size": about.parameter_size,
            "quantization_level": about.quantization,
        }
