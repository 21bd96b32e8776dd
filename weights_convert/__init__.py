"""Published checkpoints to muscjax parameters: one mapping table per family, safetensors out.

``convert(src, dest)`` reads a PyTorch state_dict (``.pth``, with the ``convert`` extra) or safetensors
(no torch needed), recognises the layout from the keys, and writes one file that
:mod:`muscjax.backbones.registry` loads.
"""

from weights_convert.convert import FAMILIES, Report, convert, plan

__all__ = ["FAMILIES", "Report", "convert", "plan"]
