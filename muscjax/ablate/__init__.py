"""The paper's ablations on a user's data: tables as data, features extracted once, every row resumable."""

from muscjax.ablate.runner import Result, run
from muscjax.ablate.tables import TABLES, Draw, Pooling, Table, Variant

__all__ = ["TABLES", "Draw", "Pooling", "Result", "Table", "Variant", "run"]
