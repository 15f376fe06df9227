"""LoRA adapters as files, of this project, PEFT, loralib and the authors; and many of them at once, in a bank. Left out: what
other methods train (methods/)."""
from adapters.bank import AdapterBank
from adapters.saving import load_adapter, save_adapter

__all__ = ["AdapterBank", "load_adapter", "save_adapter"]
