"""What the rest of the house knows of files: to read them with care, write them whole, fetch and keep them.

    text.py         lines, tables, JSON                   published.py    models and tasks: from a name to a folder
    weights.py      safetensors, pickles, index files     bases.py        the models that have a name
    framing.py      a tokenizer's frame, its limit        download.py     one file over HTTP, resumed and checked
    glue_forms.py   GLUE's tables and the Hub's           cache.py        what is computed once and kept
    tokenizer.py    byte-level BPE                        cli.py          one error style for all commands
    wordpiece.py    BERT's tokenizer                      writing.py      whole or not at all; locks

The folder of a model: pretrained.py and model_config.py (tensors, config.json), head.py (its classes), vocabulary.py,
tokenizer_json.py (tokens and merges), special_tokens.py (what the tokens are for).

Only weights.py and pretrained.py import torch. Left out: how models compute, and what an adapter is.
"""
