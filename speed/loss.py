"""The language model's loss with its gradient taken in the forward pass, so that few of the (M, V) logits exist at a time.

Plain form: F.cross_entropy of all logits, which for gpt2 and 220 targets takes 44 MB apiece for logits, probabilities and
gradients. The backward pass can be differentiated once. Left out: classes that are ignored.
Shapes: M targets, C hidden size, V vocabulary.
"""
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

LOGIT_ROWS = 128                                                             # targets whose logits exist at the same time
SOFTMAX_ROWS = 16                                                            # of them, what a processor's cache holds in fp32


def target_loss(hidden: Tensor, weight: Tensor, targets: Tensor, smoothing: float = 0.0) -> Tensor:
    """Sum over the M targets of the cross-entropy of logits = hidden W^T, in nats: hidden (M, C), weight (V, C), targets
    (M,). smoothing: the share e of the target that goes to all V tokens alike, as in F.cross_entropy. Rows of hidden behind the
    targets' fill a batch up and count for nothing."""
    gradients = torch.is_grad_enabled()                                      # TargetLoss.forward itself runs without
    return TargetLoss.apply(hidden, weight, targets, smoothing, gradients and hidden.requires_grad,
                            gradients and weight.requires_grad)


def losses(logits: Tensor, targets: Tensor, smoothing: float, with_gradient: bool) -> Tensor:
    """Loss per row (m,) of logits (m, V) and targets (m,), in fp32. with_gradient: dloss/dlogits takes the logits' place."""
    z, target, vocabulary = logits.float(), targets[:, None], logits.shape[1]                # fp32 logits are z itself
    largest, at_target, mean = z.amax(1, keepdim=True), z.gather(1, target), z.mean(1, keepdim=True)
    Z = z.sub_(largest).exp_().sum(1, keepdim=True)
    if with_gradient:
        z.div_(Z).sub_(smoothing / vocabulary).scatter_add_(1, target, torch.full_like(at_target, smoothing - 1))
        logits.copy_(z)
    return (largest + Z.log() - (1 - smoothing) * at_target - smoothing * mean).squeeze(1)


class TargetLoss(torch.autograd.Function):
    """Per row: loss = log Z - (1 - e) z_target - e mean(z), dloss/dz = softmax(z) - (1 - e) onehot(target) - e / V."""

    @staticmethod
    def forward(ctx, hidden: Tensor, weight: Tensor, targets: Tensor, smoothing: float, with_hidden: bool,
                with_weight: bool) -> Tensor:
        d_hidden = torch.empty_like(hidden) if with_hidden else None
        d_weight = torch.zeros_like(weight) if with_weight else None
        total = hidden.new_zeros((), dtype=torch.float32)
        at_a_time = SOFTMAX_ROWS if hidden.device.type == "cpu" else LOGIT_ROWS          # a GPU wants few kernels
        for start in range(0, len(hidden), LOGIT_ROWS):
            rows = slice(start, start + LOGIT_ROWS)
            logits = hidden[rows] @ weight.T                                 # (m or more, C) -> (m or more, V)
            logits[len(targets[rows]):] = 0                                  # no gradient comes from what fills the batch up
            total += torch.cat([losses(*few, smoothing, with_hidden or with_weight) for few in
                                zip(logits[:len(targets[rows])].split(at_a_time), targets[rows].split(at_a_time),
                                    strict=True)]).sum()
            if with_hidden:
                torch.mm(logits, weight, out=d_hidden[rows])                 # they are dloss/dlogits now
            if with_weight:
                d_weight.addmm_(logits.T, hidden[rows])
        ctx.save_for_backward(d_hidden, d_weight)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient: Tensor):
        return *(None if taken is None else taken * gradient for taken in ctx.saved_tensors), None, None, None, None
