"""Makes ``hubtwins.json``: what llama.cpp's converter and transformers make of small folders of every family.

    python -m tests.parity.hubtwins CONVERTER [--only NAME]

runs where ``transformers`` and PyTorch are installed (``make hub-twins`` sets that up); CONVERTER is the folder with
``convert_hf_to_gguf.py``. A family's own classes say, by ``save_pretrained``, which tensors a folder has; their values
are random and follow from names (``tests.hubfolders``), so that they need not be kept. Of the GGUF file that the
converter makes of it entries, types, sizes and checksums are kept; of transformers the logits after a few tokens.
"""

import argparse
import hashlib
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from tests.hubfolders import write_folder

RESULT = Path(__file__).with_suffix(".json")
TOKENS = [72, 101, 108, 108, 111, 44, 220, 99]
_CONVERT = """
import runpy, sys
sys.path[:0] = [sys.argv[1], sys.argv[1] + "/gguf-py"]
import conversion.base
conversion.base.TextModel.get_vocab_base_pre = lambda self, tokenizer: "llama-bpe"
sys.argv = [sys.argv[1] + "/convert_hf_to_gguf.py", *sys.argv[2:]]
runpy.run_path(sys.argv[0], run_name="__main__")
"""
"""The converter knows tokenizers by checksums; this one is none of them."""


def variants() -> dict[str, Any]:
    """A config of transformers, and a quantisation that is put upon what it saves, for each."""
    import transformers as t  # noqa: PLC0415

    base: dict[str, Any] = {
        "vocab_size": 288,
        "hidden_size": 128,
        "intermediate_size": 256,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
        "bos_token_id": 286,
        "eos_token_id": 287,
        "pad_token_id": None,
        "tie_word_embeddings": False,
    }
    llama_3 = {
        "rope_type": "llama3",
        "rope_theta": 500000.0,
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
    }
    return {
        "llama": (t.LlamaConfig(**base, rope_parameters=llama_3), {}),
        "llama-tied": (t.LlamaConfig(**{**base, "tie_word_embeddings": True}), {}),
        "mistral": (t.MistralConfig(**base, head_dim=48, sliding_window=None), {}),
    }


def make(name: str, config: Any, quantization: dict[str, Any], converter: Path, place: Path) -> dict[str, Any]:
    """What is kept of one variant."""
    import torch  # noqa: PLC0415
    from transformers import AutoModelForCausalLM  # noqa: PLC0415

    saved, folder, twin = place / "saved", place / name, place / f"{name}.gguf"
    AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).save_pretrained(saved)
    header = (saved / "model.safetensors").read_bytes()
    entries = json.loads(header[8 : 8 + int.from_bytes(header[:8], "little")])
    sources = {key: (entry["dtype"], entry["shape"]) for key, entry in entries.items() if key != "__metadata__"}
    own = json.loads((saved / "config.json").read_text())
    write_folder(folder, own, sources)
    command = [sys.executable, "-c", _CONVERT, str(converter), str(folder), "--outfile", str(twin)]
    subprocess.run(command, check=True, capture_output=True)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with torch.no_grad():
        logits = model(torch.tensor([TOKENS])).logits[0, -1]
    kept = {"config": own, "sources": sources, "twin": _twin(twin)}
    return {**kept, "logits": [round(float(value), 4) for value in logits]}


def _twin(path: Path) -> dict[str, Any]:
    import gguf  # noqa: PLC0415

    reader = gguf.GGUFReader(path)
    metadata = {
        name: field.contents()
        for name, field in reader.fields.items()
        if not name.startswith(("GGUF.", "tokenizer.")) and name != "general.name"
    }
    tensors = {
        tensor.name: (
            tensor.tensor_type.name,
            int(tensor.shape[0]),
            int(tensor.n_elements // tensor.shape[0]),
            hashlib.sha256(tensor.data.tobytes()).hexdigest()[:16],
        )
        for tensor in reader.tensors
    }
    return {"metadata": metadata, "tensors": tensors}


def main() -> None:
    """Makes all, or one, and writes the file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("converter", type=Path)
    parser.add_argument("--only", nargs="*")
    arguments = parser.parse_args()
    found = json.loads(RESULT.read_text()) if RESULT.exists() else {}
    for name, (config, quantization) in variants().items():
        if not arguments.only or name in arguments.only:
            with tempfile.TemporaryDirectory() as place:
                found[name] = make(name, config, quantization, arguments.converter, Path(place))
            print(name, len(found[name]["twin"]["tensors"]), "tensors", flush=True)
    lines = [f"{json.dumps(name)}: {json.dumps(entry, separators=(',', ':'))}" for name, entry in sorted(found.items())]
    RESULT.write_text("{\n" + ",\n".join(lines) + "\n}\n")


if __name__ == "__main__":
    main()
