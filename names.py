"""What tasks, methods and the matrices that LoRA adapts are called, everywhere: on the command line, in files, in the code.

Imports nothing, so that a command line can be read before torch is loaded. What a task is stands in data.py, what a method
does in baselines.py, where a target lies in adapter_files.py. Left out: the names of models (download.py).
"""
GLUE = ("cola", "sst2", "mrpc", "stsb", "qqp", "mnli", "qnli", "rte", "wnli")
TASKS = ("e2e", *GLUE)
METHODS = ("lora", "full", "last-layers", "bitfit", "adapter-h", "adapter-l", "prefix", "head")
WITH_RANK = ("lora", "adapter-h", "adapter-l", "prefix")                     # rank: also a bottleneck's or prefix's size
TARGETS = ("q", "k", "v", "o", "fc", "proj", "qkv")                          # Table 5 names q k v o
