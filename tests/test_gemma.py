"""What is done to the second model's file before engines run it."""

from __future__ import annotations

import gemma
import numpy as np
from gguf import GGUFReader, GGUFWriter


def test_a_template_moves_nothing_out_of_its_place(tmp_path):
    """The copy has a chat template, and otherwise the metadata and tensors of the original."""
    path, weights = tmp_path / gemma.FILE_NAME, np.arange(96, dtype=np.float32).reshape(3, 32)
    writer = GGUFWriter(path, "llama")
    writer.add_name("tiny")
    writer.add_tensor("weights", weights)
    writer.add_tensor("more", weights + 1)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    reader = GGUFReader(gemma._with_template(path))
    template = reader.fields["tokenizer.chat_template"].contents()
    assert template.startswith(gemma.TEMPLATE)
    assert template.removeprefix(gemma.TEMPLATE).strip(" {#}") == ""
    assert reader.fields["general.name"].contents() == "tiny"
    assert [tensor.name for tensor in reader.tensors] == ["weights", "more"]
    for tensor, values in zip(reader.tensors, (weights, weights + 1), strict=True):
        assert np.array_equal(tensor.data, values)
