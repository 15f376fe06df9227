"""Many tasks in one batch: the limit that the paper names, lifted (Hu et al. 2021, section 4.2, last paragraph).

Merged weights cost nothing but serve one task. A bank holds any number of adapters of one base, and in a batch each row
uses its own:

    h[b] = W x[b] + B[a(b)] A[a(b)] x[b]             a(b): the adapter of row b, its scale alpha / r folded into B

W x is one product for all rows. The rest is two thin batched products per layer, over A and B gathered once per batch;
lower ranks are filled up with zeros. A row that is to stay the bare base has zeros for both, and a layer that no row's
adapter touches does nothing. So a batch costs the same whether the bank holds ten adapters or a thousand.

    bank = AdapterBank(load_pretrained("roberta-base"))
    bank.add("mrpc", "runs/mrpc/adapter")
    bank.add("mnli", "runs/mnli/adapter")
    bank.logits(["mrpc", "mnli", "mrpc"], input_ids, attention_mask)    # a list: 2, 3 and 2 numbers

The base model is not changed: while a batch runs, hooks on its linear layers add the updates to their outputs.
The rows stand end to end, without padding. Left out: training through the bank, several batches at the same time (a
bank runs one, though adapters may come and go).
Shapes: B rows (outside of shapes, B is the matrix), T tokens, N tokens of all rows, C hidden size, I layers, r rank of an
adapter, R gathered rank, L labels, V vocabulary.
"""
import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from adapter_files import HEAD, LAYERS, MODULES, read_adapter, target_slice
from decode import generate
from fused import Packing
from lora import is_base, load_adapter, lora_layers
from model import GPT2, ClassificationHead, RobertaClassifier

BASE = "base"                                                                # adapter 0: no update, the base's own head


@dataclass(frozen=True, eq=False)
class BankAdapter:
    """An adapter taken apart. updates: target -> A (I, r, d_in) and B (I, r, d_out), the scale folded into B."""
    task: str
    updates: dict[str, tuple[Tensor, Tensor]]
    head: ClassificationHead | None                                          # None for GPT-2


def bank_adapter_of(model: GPT2 | RobertaClassifier, task: str = "") -> BankAdapter:
    """The update and the head of a model that has LoRA. Raises ValueError where a number is not finite."""
    updates, layers = {}, lora_layers(model)
    for target in model.lora_settings.targets:
        own = [layer for layer in layers.values() if target in layer.slices]
        A = torch.stack([layer.lora_A[target].detach() for layer in own])
        B = torch.stack([layer.scale * layer.lora_B[target].detach().T for layer in own])
        if not (A.isfinite().all() and B.isfinite().all()):
            raise ValueError(f"the update of target '{target}' holds NaN or infinity; expected finite numbers")
        updates[target] = A, B
    return BankAdapter(task, updates, getattr(model, "classifier", None))


def read_bank_adapter(model: GPT2 | RobertaClassifier, directory: str | Path, alpha: float | None = None) -> BankAdapter:
    """An adapter in any format of load_adapter, read through it into a model that shares the base's memory.

    alpha: as for load_adapter, in place of the stored one; the authors' and loralib's files store none.
    Raises ValueError and OSError as load_adapter does, and ValueError for an adapter that lacks the head or that trains
    biases: those belong to no row.
    """
    stored, config = read_adapter(directory, model.config), model.config
    if stored.bias != "none":
        raise ValueError(f"{directory}: trains biases beside the update (bias {stored.bias}), but rows share those of the "
                         "base: train it without")
    if isinstance(model, RobertaClassifier):
        if stored.num_labels is None:
            raise ValueError(f"{directory}: no task head; expected {HEAD}dense and {HEAD}out_proj: save the adapter "
                             "together with the head it was trained with")
        config = replace(config, num_labels=stored.num_labels)
    with torch.device("meta"):
        shell = type(model)(config)
    weights = {name: tensor for name, tensor in model.state_dict().items() if is_base(name)}
    if isinstance(model, RobertaClassifier):
        shell.classifier = ClassificationHead(config).to(model.classifier.dense.weight.device)
        weights |= {HEAD + name: tensor for name, tensor in shell.classifier.state_dict().items()}
    shell.load_state_dict(weights, strict=True, assign=True)                 # the base's own memory, nothing is copied
    return bank_adapter_of(load_adapter(shell, directory, alpha).eval().requires_grad_(False), stored.task or "")


class AdapterBank:
    """Adapters of one base by name, and forward passes in which every row uses the adapter that it names.

    Adapters may be added and removed at any time, also from another thread while a batch runs: the batch keeps the
    adapters that it began with.
    """

    def __init__(self, model: GPT2 | RobertaClassifier):
        """model: a base without LoRA; it is set to eval mode. Raises RuntimeError if it has LoRA."""
        if lora_layers(model):
            raise RuntimeError("the model has LoRA: a bank needs the bare base, so load it again without an adapter")
        self.model, self.hooks = model.eval(), []
        self.adapters = {BASE: BankAdapter("", {}, getattr(model, "classifier", None))}

    # ------------------------------------------------------------ which adapters there are

    def add(self, name: str, adapter: str | Path | BankAdapter, alpha: float | None = None) -> None:
        """Hold an adapter, given as its folder or file or taken apart, under a name. alpha: see read_bank_adapter.

        Raises ValueError for a name that is taken, another base, a missing head and a missing alpha, with the names that
        exist.
        """
        if name in self.adapters:
            raise ValueError(f"there is an adapter '{name}' already; choose another name ({self.held()})")
        if not isinstance(adapter, BankAdapter):
            try:
                adapter = read_bank_adapter(self.model, adapter, alpha)
            except ValueError as error:
                raise ValueError(f"adapter '{name}': {error} ({self.held()})") from None
        self.adapters[name] = adapter

    def remove(self, name: str) -> None:
        """Let go of an adapter and its memory. Raises ValueError for a name that is not held, and for the base."""
        self[name]
        if name == BASE:
            raise ValueError(f"'{BASE}' is the bare base model, which stays; remove one of the others ({self.held()})")
        del self.adapters[name]

    def __getitem__(self, name: str) -> BankAdapter:
        try:
            return self.adapters[name]
        except KeyError:
            raise ValueError(f"there is no adapter '{name}' ({self.held()})") from None

    def held(self) -> str:
        names = list(self.adapters)
        shown = names if len(names) <= 20 else [*names[:19], f"{len(names) - 19} more"]
        return f"the bank holds {', '.join(shown)}"

    def choose(self, names: Sequence[str], rows: int) -> list[BankAdapter]:
        if len(names) != rows:
            raise ValueError(f"{len(names)} adapter names for a batch of {rows} rows; expected a name per row")
        return [self[name] for name in names]

    # ------------------------------------------------------------ a batch

    @torch.inference_mode()
    def logits(self, names: Sequence[str], input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor | list[Tensor]:
        """Logits of rows (B, T), each with the adapter that `names` has for it; padding on the right.

        GPT-2: (B, T, V), zeros at padding. RoBERTa: B tensors, each as long as the row's task has labels.
        Raises ValueError for a name that is not held and for other masks (see pack_rows), before anything is computed.
        """
        adapters = self.choose(names, len(input_ids))
        packed, packing, lengths, order = pack_rows(input_ids, attention_mask)
        adapters = [adapters[row] for row in order]
        try:
            self.route(adapters, lengths)
            if isinstance(self.model, GPT2):
                packing = Packing(packing.groups)                                        # every token is wanted
                logits = self.model.logits(self.model.hidden_states(packed, packing=packing))        # (N,) -> (N, V)
                rows = torch.tensor(order).repeat_interleave(torch.tensor(lengths))      # of every token
                whole = logits.new_zeros(*input_ids.shape, logits.shape[-1])
                whole[rows, packing.positions(self.model.config.n_positions, logits.device)] = logits
                return whole                                                             # (B, T, V)
            first = self.model.hidden_states(packed, packing=packing)[:, None]           # (N,) -> (B, C) -> (B, 1, C), <s>
        finally:
            self.route([])
        logits: list[Tensor] = [first] * len(adapters)
        for adapter in dict.fromkeys(adapters):
            places = [place for place, other in enumerate(adapters) if other is adapter]
            for place, values in zip(places, adapter.head(first[places]), strict=True):  # (n, 1, C) -> (n, L)
                logits[order[place]] = values
        return logits

    def generate(self, names: Sequence[str], prompts: Sequence[Sequence[int]], **options) -> list[list[int]]:
        """decode.generate with an adapter per prompt: all beams of a prompt share its row, and so its adapter."""
        if not isinstance(self.model, GPT2):
            raise ValueError("the bank's base is a RoBERTa, which generates no text: ask for logits, or give it a GPT-2")
        adapters = self.choose(names, len(prompts))
        try:
            return generate(self.model, prompts, route=lambda rows: self.route([adapters[row] for row in rows]), **options)
        finally:
            self.route([])

    def route(self, adapters: Sequence[BankAdapter], lengths: list[int] | None = None) -> None:
        """Make the model's next passes use adapters[b] for row b; an empty list: the bare base again. lengths: the tokens
        of every row, if the rows stand end to end (fused.Packing)."""
        for hook in self.hooks:
            hook.remove()
        self.hooks = [self.model.get_submodule(layer).register_forward_hook(partial(add_updates, *update, lengths))
                      for layer, update in self.gather(adapters).items()]

    def gather(self, adapters: Sequence[BankAdapter]) -> dict[str, tuple[Tensor, list[tuple[slice, slice, Tensor]]]]:
        """What a batch adds, by layer name: A (B, R, d_in), and for each target of the layer the rows of the layer's
        output, the columns among the R, and B (B, r, d_out).

        The targets of one layer (q, k and v of GPT-2's c_attn) stand side by side in R, each as wide as the highest
        rank of its rows' adapters. If all rows have the same adapter, B is 1: nothing is copied, the product is shared.
        """
        if len(set(adapters)) == 1:
            adapters = adapters[:1]
        layers, modules = {}, MODULES[type(self.model.config)]
        for path in dict.fromkeys(modules.values()):
            ranks = {target: max((adapter.updates[target][0].shape[1] for adapter in adapters
                                  if target in adapter.updates), default=0) for target in modules if modules[target] == path}
            A, parts, start = [], [], 0
            for target, rank in ranks.items():
                if rank:
                    pairs = [adapter.updates.get(target) for adapter in adapters]
                    A.append(pad_and_stack([pair and pair[0] for pair in pairs], rank))
                    B = pad_and_stack([pair and pair[1] for pair in pairs], rank)        # (I, B, r, d_out)
                    parts.append((target_slice(self.model.config, target), slice(start, start + rank), B))
                    start += rank
            if A:
                A = A[0] if len(A) == 1 else torch.cat(A, dim=2)                         # (I, B, R, d_in)
                for index in range(len(A)):
                    layers[f"{LAYERS[type(self.model.config)]}.{index}.{path}"] = A[index], [
                        (rows, columns, B[index]) for rows, columns, B in parts]
        return layers


def pad_and_stack(matrices: Sequence[Tensor | None], rank: int) -> Tensor:
    """(I, r, d) of every row -> (I, B, rank, d), zeros where a row has no matrix or a lower rank."""
    if len(matrices) == 1:
        return matrices[0][:, None]
    first = next(matrix for matrix in matrices if matrix is not None)
    stacked = first.new_zeros(first.shape[0], len(matrices), rank, first.shape[2])
    for row, matrix in enumerate(matrices):
        if matrix is not None:
            stacked[:, row, :matrix.shape[1]] = matrix
    return stacked


def pack_rows(input_ids: Tensor, attention_mask: Tensor | None) -> tuple[Tensor, Packing, list[int], list[int]]:
    """Rows (B, T), padded on the right -> their N tokens end to end, the longest row first; the packing, which wants every
    row's first token; the rows' lengths in this order, and their numbers. Raises ValueError for padding elsewhere, and for a
    row without a token."""
    mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
    if (mask[:, 1:] > mask[:, :-1]).any():
        raise ValueError("attention_mask has a 0 before a 1: a bank takes padding on the right only")
    if (empty := ~mask.bool().any(dim=1)).any():
        raise ValueError(f"row {empty.nonzero()[0].item()} of the batch has no token, expected a 1 in every row of "
                         "attention_mask: leave the row out")
    lengths, order = mask.sum(dim=1).sort(descending=True, stable=True)
    packed = input_ids[order][mask[order].bool()]                            # (B, T) -> (N,)
    groups = tuple((len(list(rows)), length) for length, rows in itertools.groupby(lengths.tolist()))
    return packed, Packing(groups, lengths.cumsum(0) - lengths), lengths.tolist(), order.tolist()


def add_updates(A: Tensor, parts: list[tuple[slice, slice, Tensor]], lengths: list[int] | None, layer: nn.Module,
                inputs: tuple[Tensor], h: Tensor) -> None:
    """A forward hook: h (B, T, d_out) of a layer with input x (B, T, d_in) gets each row's own B A x. Rows that stand end
    to end, (N, d), are taken one by one; after the last attention only one token of each is left."""
    (x,), n_rows = inputs, len(A)
    if lengths is None or n_rows == 1 or len(x) == n_rows:
        if lengths is not None:
            x, h = (x[None], h[None]) if n_rows == 1 else (x[:, None], h[:, None])       # all as one row, or one token each
        low = x @ A.transpose(1, 2)                                          # (B, T, d_in) -> (B, T, R)
        for rows, columns, B in parts:
            h[..., rows].add_(low[..., columns] @ B)                         # (B, T, r) -> (B, T, d_out)
        return
    for row, (tokens, out) in enumerate(zip(x.split(lengths), h.split(lengths), strict=True)):
        low = tokens @ A[row].T                                              # (t, d_in) -> (t, R)
        for rows, columns, B in parts:
            out[:, rows].addmm_(low[:, columns], B[row])                     # (t, r) -> (t, d_out)
