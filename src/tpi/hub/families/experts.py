"""Experts as folders have them: a matrix each, or those of a layer in one tensor, gate and up perhaps as well."""

from tpi.errors import ModelFileError
from tpi.hub.description import Description
from tpi.hub.values import Axes, Rows, Stacked, Values

_ROLES = ("gate", "up", "down")


def put_experts(to: Description, source: str, target: str, n_experts: int) -> None:
    """The matrices of all experts after ``source`` (``…experts.``), as ``target`` and ``ffn_gate_exps.weight`` and so
    on.

    Raises:
        ModelFileError, UnsupportedModelError: one is missing, or they are not of one shape and type.
    """
    fused = f"{source}gate_up_proj"
    if fused not in to.folder:
        for role in _ROLES:
            to.put(f"{target}ffn_{role}_exps.weight", _stacked(to, source, role, n_experts))
        return
    values = to.folder.values(fused)
    for number, role in enumerate(("gate", "up")):
        to.put(f"{target}ffn_{role}_exps.weight", half(to, values, n_experts, number))
    to.put(f"{target}ffn_down_exps.weight", to.folder.values(f"{source}down_proj"))


def half(to: Description, values: Values, n_matrices: int, number: int, *, is_interleaved: bool = False) -> Rows:
    """Of each of the matrices that lie one after the other the first half of the rows (``number`` 0) or the second (1),
    or every other row.

    Raises:
        ModelFileError: they do not divide so.
    """
    rows, left = divmod(values.n_rows, max(1, n_matrices))
    if left or rows % 2:
        raise ModelFileError(f"{to.folder.path}: {values.n_rows} rows are not {n_matrices} pairs of matrices")
    own = (rows // 2, 2) if is_interleaved else (rows // 2, 1)
    return Rows(values, Axes(((n_matrices, rows), own), number * (1 if is_interleaved else rows // 2)))


def _stacked(to: Description, source: str, role: str, n_experts: int) -> Values:
    if not 0 < n_experts <= len(to.folder.tensors):
        raise ModelFileError(f"{to.folder.config.file}: {n_experts} experts cannot be; fetch the file again")
    found = [to.folder.values(f"{source}{number}.{role}_proj.weight") for number in range(n_experts)]
    if len({(each.kind, each.n_rows, each.n_columns) for each in found}) != 1:
        raise ModelFileError(f"{to.folder.path}: experts of {source} differ in type or size; fetch it again")
    return Stacked(tuple(found))
