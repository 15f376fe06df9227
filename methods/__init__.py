"""The methods that LoRA is compared with (Hu et al. 2021, section 5.1), and LoRA, by their names.

    lora         the low-rank updates (lora.py)
    full         every weight
    last-layers  the last two blocks ("FT-Top2")
    bitfit       every bias, and nothing else (Ben Zaken et al. 2021)
    adapter-h    bottleneck layers after attention and after the MLP, before the residual (Houlsby et al. 2019)
    adapter-l    one per block, after the MLP and its residual, with a LayerNorm of its own (Lin et al. 2020)
    prefix       trained activations of `rank` extra tokens, which every layer's attention sees ("PreLayer")
    head         the task head on the frozen base

Left out: counts by formula (experiments/counts.py), AdapterP and AdapterD (variants of the two adapters), and prefixes of
the embedding layer alone.
"""
from methods.apply import METHODS, WITH_RANK, apply_method, parameter_counts, trained_parameters
from methods.saving import load_trained, read_trained, reload_trained, save_trained, start_from

__all__ = ["METHODS", "WITH_RANK", "apply_method", "load_trained", "parameter_counts", "read_trained", "reload_trained",
           "save_trained", "start_from", "trained_parameters"]
