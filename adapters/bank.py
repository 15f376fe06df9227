"""Many tasks in one batch: the limit that the paper names, lifted (Hu et al. 2021, section 4.2, last paragraph).

Merged weights cost nothing but serve one task. A bank holds any number of adapters of one base, and in a batch each row
uses its own:

    h[b] = W x[b] + B[a(b)] A[a(b)] x[b]             a(b): the adapter of row b, its scale alpha / r folded into B

W x is one product for all rows. The rest is two thin batched products per layer, over A and B gathered once per batch;
lower ranks are filled up with zeros. A row that is to stay the bare base has zeros for both, and a layer that no row's
adapter touches does nothing. So a batch's work depends on its rows and not on what else the bank holds (docs/many-tasks.md).

    bank = AdapterBank(load_pretrained("roberta-base"))
    bank.add("mrpc", "runs/mrpc/adapter")
    bank.add("mnli", "runs/mnli/adapter")
    bank.logits(["mrpc", "mnli", "mrpc"], input_ids, attention_mask)    # a list: 2, 3 and 2 numbers

The base model is not changed (but by `merge`): while a batch runs, hooks on its linear layers add the updates to their
outputs, in the base's format, fp32 or bf16. The rows stand end to end, without padding. Left out: training through the bank,
several batches at the same time (a bank runs one, though adapters may come and go).
Shapes: B rows (outside of shapes, B is the matrix), T tokens, N tokens of all rows, C hidden size, I blocks, r rank of an
adapter, R highest rank in a batch, L labels, V vocabulary.
"""
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from adapters.adapter import HEAD, Adapter, layer_name
from adapters.base import check_base
from adapters.saving import alpha_for, complete_head, copy_tensors, read_adapter
from generation import generate
from lora import base_fingerprints
from speed.packed import TOKENS_AT_A_TIME, pack
from speed.transfer import to_host

BASE = "base"                                                                # adapter 0: no update, the base's own head


@dataclass(frozen=True, eq=False)
class BankAdapter:
    """An adapter taken apart. updates: target -> A (I, r, d_in) and B (I, r, d_out), the scale folded into B."""
    task: str
    updates: dict[str, tuple[Tensor, Tensor]]
    head: nn.Module | None                                                   # None for GPT-2
    form: dict | None = None                                                 # as in Adapter


def bank_adapter_of(model: nn.Module, adapter: Adapter, alpha: float | None = None) -> BankAdapter:
    """An adapter for a bank of the base `model`. alpha: in place of the stored one, and where the file has none.
    Raises ValueError for another base, no alpha, numbers that are not finite, a missing head, and trained biases: those
    belong to no row."""
    config, device = model.config, next(model.parameters()).device
    check_base(adapter, model)
    if adapter.bias != "none":
        raise ValueError(f"{adapter.source}: trains biases beside the update (bias {adapter.bias}), but rows share those of "
                         "the base: train it without")
    if model.head and adapter.num_labels is None:
        raise ValueError(f"{adapter.source}: no task head; expected {HEAD}dense and {HEAD}out_proj: save the adapter together "
                         "with the head it was trained with")
    scale, updates = alpha_for(adapter, alpha) / adapter.rank, {}
    for target in adapter.targets:
        pairs = [adapter.updates[layer_name(config, index, target)][target] for index in range(config.num_layers)]
        A, B = (torch.stack(matrices) for matrices in zip(*pairs, strict=True))
        updates[target] = A, (scale * B.mT).contiguous()
        if not all(matrix.isfinite().all() for matrix in updates[target]):
            raise ValueError(f"the update of target '{target}' holds NaN or infinity; expected finite numbers")
        updates[target] = tuple(matrix.to(device) for matrix in updates[target])
    head = None
    if model.head:
        with torch.device("meta"):
            head = type(head_of(model))(replace(config, num_labels=adapter.num_labels))
        head.to_empty(device=device).eval().requires_grad_(False)
    complete_head(adapter, model)
    wanted = {} if head is None else {model.head + name: parameter for name, parameter in head.named_parameters()}
    copy_tensors(wanted, adapter.others, adapter.source)
    return BankAdapter(adapter.task or "", updates, head, adapter.form)


def head_of(model: nn.Module) -> nn.Module | None:
    return model.get_submodule(model.head.rstrip(".")) if model.head else None


class AdapterBank:
    """Adapters of one base by name, and forward passes in which every row uses the adapter that it names.
    Adapters may be added and removed at any time, also from another thread while a batch runs: the batch keeps the
    adapters that it began with."""

    def __init__(self, model: nn.Module):
        """model: a base without LoRA; it is set to eval mode. Raises RuntimeError if it has LoRA or another method."""
        if model.method is not None:
            raise RuntimeError(f"the model has {'LoRA' if model.method == 'lora' else model.method}: a bank needs the bare "
                               "base, so load it again without an adapter")
        self.model, self.hooks = model.eval(), []
        self.adapters = {BASE: BankAdapter("", {}, head_of(model))}
        self.merged, self.before_merge = None, {}

    # ------------------------------------------------------------ which adapters there are

    def add(self, name: str, adapter: str | Path | Adapter | BankAdapter, alpha: float | None = None) -> None:
        """Hold an adapter, given as its folder or file, read or taken apart, under a name. alpha: see bank_adapter_of.
        Raises ValueError for a name that is taken, and like read_adapter and bank_adapter_of, with the names that exist."""
        if name in self.adapters:
            raise ValueError(f"there is an adapter '{name}' already; choose another name ({self.held()})")
        try:
            if isinstance(adapter, (str, Path)):
                adapter = read_adapter(adapter, self.model.config)
            if isinstance(adapter, Adapter):
                self.model.fingerprints = base_fingerprints(self.model)      # taken once, not for every adapter
                adapter = bank_adapter_of(self.model, adapter, alpha)
        except ValueError as error:
            raise ValueError(f"adapter '{name}': {error} ({self.held()})") from None
        self.adapters[name] = adapter

    def remove(self, name: str) -> None:
        """Let go of an adapter and its memory. Raises ValueError for a name that is not held, and for the base."""
        self[name]
        if name == BASE:
            raise ValueError(f"'{BASE}' is the bare base model, which stays; remove one of the others ({self.held()})")
        if self.adapters.pop(name) is self.merged:
            self.unmerge()

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

    @torch.no_grad()
    def merge(self, name: str) -> None:
        """Add one adapter's update to the weights, for batches of it alone, which then cost what the base's do (section
        4.1). The first batch with another adapter puts the old weights back, bit for bit. To be held in bf16, a base is
        best rounded after this: most updates are smaller than the steps between bf16 weights."""
        self.unmerge()
        self.model.fingerprints = base_fingerprints(self.model)              # of the weights as they were
        self.merged = self[name]
        for target, (A, B) in self.merged.updates.items():
            for index, (a, b) in enumerate(zip(A, B, strict=True)):
                weight = self.weight(index, target)                          # (rows, d_in)
                self.before_merge[index, target] = weight.clone()
                weight += (b.T @ a).to(weight.dtype)

    @torch.no_grad()
    def unmerge(self) -> None:
        for (index, target), before in self.before_merge.items():
            self.weight(index, target).copy_(before)
        self.merged, self.before_merge = None, {}

    def weight(self, index: int, target: str) -> Tensor:
        """A target's rows of its layer's weight in one block, (rows, d_in): a view."""
        layer = self.model.get_submodule(layer_name(self.model.config, index, target))
        weight = layer.weight.T if getattr(layer, "stored_transposed", False) else layer.weight
        return weight[self.model.config.targets[target].rows]

    # ------------------------------------------------------------ a batch

    @torch.inference_mode()
    def logits_of(self, names: Sequence[str], sequences: Sequence[list[int]]) -> list[Tensor]:
        """Logits of sequences of token ids, each with the adapter that `names` has for it.
        GPT-2: (T, V) for the T tokens of each. RoBERTa: (L,), as many as its adapter's task has labels. Raises ValueError
        for a name that is not held and a sequence without tokens, before anything is computed, and for one that is too long."""
        adapters = self.choose(names, len(sequences))
        if not all(map(len, sequences)):
            raise ValueError("a sequence has no token, expected at least one in each: leave it out")
        embedding = next(self.model.parameters())
        order, device = sorted(range(len(sequences)), key=lambda row: -len(sequences[row])), embedding.device
        if device.type != "cpu":                                             # there padding makes them alike: by adapter
            order.sort(key=list(map(id, adapters)).__getitem__)
        adapters, sequences = [adapters[row] for row in order], [sequences[row] for row in order]
        multiple = TOKENS_AT_A_TIME if embedding.dtype == torch.bfloat16 else 1
        ids, attend = pack(sequences, self.model.causal, device, multiple)                       # (N,)
        lengths = attend.lengths[:len(sequences)]
        ids, first = attend.send(device, ids, attend.starts[:len(sequences)])
        try:
            self.route(adapters, lengths)
            hidden = self.model.hidden_states(ids, attend, first if self.model.head else slice(None))
        finally:
            self.route([])
        if self.model.head:
            found = classify(adapters, hidden)                               # (B, C) -> B times (L,)
        else:
            found = self.model.logits(hidden[:sum(lengths)]).split(lengths)  # (N, C) -> (N, V) -> B times (T or more, V)
            found = [logits[:len(sequence)] for logits, sequence in zip(found, sequences, strict=True)]
        in_order = dict(zip(order, found, strict=True))
        return [in_order[row] for row in range(len(order))]

    @torch.inference_mode()
    def logits(self, names: Sequence[str], input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor | list[Tensor]:
        """logits_of for rows (B, T) that are padded on the right.
        GPT-2: (B, T, V), zeros at padding. RoBERTa: B tensors, each as long as the row's task has labels.
        Raises ValueError also for padding elsewhere, and for a row without a token."""
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        input_ids, mask = to_host(input_ids, mask)
        if (mask[:, 1:] > mask[:, :-1]).any():
            raise ValueError("attention_mask has a 0 before a 1: a bank takes padding on the right only")
        if (empty := ~mask.bool().any(dim=1)).any():
            raise ValueError(f"row {empty.nonzero()[0].item()} of the batch has no token, expected a 1 in every row of "
                             "attention_mask: leave the row out")
        found = self.logits_of(names, [row[kept].tolist() for row, kept in zip(input_ids, mask.bool(), strict=True)])
        if self.model.head:
            return found
        return torch.stack([pad(row, (0, 0, 0, input_ids.shape[1] - len(row))) for row in found])

    def generate(self, names: Sequence[str], prompts: Sequence[Sequence[int]], **options) -> list[list[int]]:
        """generation.generate with an adapter per prompt: all beams of a prompt share its row, and so its adapter."""
        if self.model.head:
            raise ValueError("the bank's base is an encoder, which generates no text: ask for logits, or give it a GPT-2")
        adapters = self.choose(names, len(prompts))
        try:
            return generate(self.model, prompts, route=lambda rows: self.route([adapters[row] for row in rows]), **options)
        finally:
            self.route([])

    def route(self, adapters: Sequence[BankAdapter], lengths: list[int] | None = None) -> None:
        """Make the model's next passes use adapters[b] for row b; an empty list: the bare base again, or what is merged.
        lengths: the tokens of every row, if the rows stand end to end (speed/packed.py)."""
        for hook in self.hooks:
            hook.remove()
        if set(adapters) == {self.merged}:
            adapters = []                                                    # the weights hold it
        elif adapters:
            self.unmerge()
        self.hooks = [self.model.get_submodule(layer).register_forward_hook(partial(add_updates, update, lengths))
                      for layer, update in self.gather(adapters).items()]

    def gather(self, adapters: Sequence[BankAdapter]) -> dict[str, tuple[slice, Tensor, Tensor]]:
        """What a batch adds, by layer name: the rows of the layer's output, A (B, R, d_in) and B (B, R, d_out), in the format
        of the base's weights. R is the highest rank of the rows' adapters, of several targets on one layer together. If all
        rows have the same adapter, B is 1: the product is shared."""
        if len(set(adapters)) == 1:
            adapters = adapters[:1]
        config, dtype, found = self.model.config, next(self.model.parameters()).dtype, {}
        for name, target in config.targets.items():
            pairs = [adapter.updates.get(name) for adapter in adapters]
            if any(pairs):
                A, B = (pad_and_stack([pair and pair[part] for pair in pairs], dtype) for part in (0, 1))
                found.setdefault(target.path, []).append((name, A, B))       # (I, B, R, d)
        layers = {}
        for of_layer in found.values():
            name, A, B = of_layer[0]
            rows = config.targets[name].rows
            if len(of_layer) > 1:                                            # q and v of a fused layer: one product for both
                rows, A, B = side_by_side(of_layer, config.targets)
            layers |= {layer_name(config, index, name): (rows, A[index], B[index]) for index in range(config.num_layers)}
        return layers


def classify(adapters: Sequence[BankAdapter], first: Tensor) -> list[Tensor]:
    """The hidden state of every row's first token, (B, C), through its adapter's head -> B times (L,)."""
    logits: list[Tensor] = [first] * len(adapters)
    for adapter in dict.fromkeys(adapters):
        places = [place for place, other in enumerate(adapters) if other is adapter]
        together = places[-1] - places[0] == len(places) - 1                 # a slice needs no indices on the device
        of_adapter = first[places[0]:places[-1] + 1] if together else first[places]
        for place, values in zip(places, adapter.head(of_adapter), strict=True):         # (n, C) -> (n, L)
            logits[place] = values
    return logits


def pad_and_stack(matrices: Sequence[Tensor | None], dtype: torch.dtype) -> Tensor:
    """(I, r, d) of every row -> (I, B, R, d), R the highest r, zeros where a row has no matrix or a lower rank."""
    if len(matrices) == 1:
        return matrices[0][:, None].to(dtype)
    if len({matrix is not None and matrix.shape for matrix in matrices}) == 1:
        return torch.stack([matrix.to(dtype) for matrix in matrices], dim=1)             # one kernel
    largest = max((matrix for matrix in matrices if matrix is not None), key=lambda matrix: matrix.shape[1])
    blocks, rank, d = largest.shape
    stacked = largest.new_zeros(blocks, len(matrices), rank, d, dtype=dtype)
    for row, matrix in enumerate(matrices):
        if matrix is not None:
            stacked[:, row, :matrix.shape[1]] = matrix
    return stacked


def side_by_side(of_layer: list[tuple[str, Tensor, Tensor]], targets: dict) -> tuple[slice, Tensor, Tensor]:
    """Targets of one layer, A and B (I, B, r, d) each, as one: their ranks add up, and each B is zero outside of its rows."""
    d_out, rank = targets[of_layer[0][0]].shape[0], 0
    A = torch.cat([A for _, A, _ in of_layer], dim=2)                        # (I, B, R, d_in)
    together = A.new_zeros(*A.shape[:3], d_out)
    for name, _, B in of_layer:
        together[:, :, rank:rank + B.shape[2], targets[name].rows] = B
        rank += B.shape[2]
    return slice(None), A, together


def add_updates(update: tuple[slice, Tensor, Tensor], lengths: list[int] | None, layer: nn.Module, inputs: tuple[Tensor],
               h: Tensor) -> None:
    """A forward hook: h (B, T, d_out) of a layer with input x (B, T, d_in) gets each row's own B A x. Rows that stand end
    to end, (N, d), are taken one by one, without what fills N up; after the last attention one token of each may be left."""
    (x,), (rows, A, B) = inputs, update
    if len(A) == 1:                                                          # all as one row
        x, h = x.reshape(1, -1, x.shape[-1]), h.view(1, -1, h.shape[-1])
    elif lengths is not None and (len(x) == len(A) or x.device.type != "cpu"):           # one token each, or padded alike
        x, h = x.unflatten(0, (len(A), -1)), h.unflatten(0, (len(A), -1))
    if x.dim() == 3:
        h[..., rows].baddbmm_(x @ A.mT, B)                                   # (B, T, d_in) -> (B, T, R) -> (B, T, d_out)
        return
    N = sum(lengths)
    for row, (tokens, out) in enumerate(zip(x[:N].split(lengths), h[:N].split(lengths), strict=True)):
        out[:, rows].addmm_(tokens @ A[row].T, B[row])                       # (t, d_in) -> (t, R) -> (t, d_out)
