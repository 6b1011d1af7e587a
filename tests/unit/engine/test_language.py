"""What a model's file says of its language."""

from pathlib import Path

import gguf

from tests.unit.engine.dialects.families import HERMES, NONE
from tests.unit.engine.vocabularies import write_sentencepiece
from tpi.engine.language import Language


def write(path: Path, *templates: tuple[str, str]) -> Path:
    made = write_sentencepiece(path.with_name("plain.gguf"))
    reader, writer = gguf.GGUFReader(made), gguf.GGUFWriter(path, "llama")
    for field in reader.fields.values():
        if not field.name.startswith("GGUF.") and field.name != "general.architecture":
            kind = field.types[-1] if field.types[0] == gguf.GGUFValueType.ARRAY else None
            writer.add_key_value(field.name, field.contents(), field.types[0], kind)
    writer.add_chat_template([{"name": name, "template": text} for name, text in templates])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_a_file_may_have_another_template_for_tools(tmp_path: Path) -> None:
    both = write(tmp_path / "both.gguf", ("default", NONE), ("tool_use", HERMES))
    with Language(both) as language:
        assert language.template.source == NONE and language.tool_template is not None
        assert language.tool_template.source == HERMES
    with Language(write(tmp_path / "one.gguf", ("default", NONE), ("rag", HERMES))) as language:
        assert language.template.source == NONE and language.tool_template is None
