"""The model "delta nets": what GGUF calls "qwen35moe".

Three layers of four have a gated delta net, the fourth full attention; every layer has experts and one shared by all.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.trained.parts import CONTEXT, VOCABULARY, Experts, Norm, angles, linear, rotate

CHUNK = 32
"""Positions of the delta net that are computed at once."""


@dataclass(frozen=True)
class Shape:
    """The dimensions of the network."""

    architecture: str = "qwen35moe"
    n_layers: int = 4
    full_attention_interval: int = 4
    n_embd: int = 192
    n_heads: int = 4
    n_kv_heads: int = 2
    head_dim: int = 64
    rope_sections: tuple[int, int, int, int] = (3, 3, 2, 0)
    n_key_heads: int = 4
    n_value_heads: int = 8
    state_size: int = 32
    kernel: int = 4
    n_experts: int = 8
    n_used: int = 2
    expert_width: int = 64
    shared_width: int = 64
    epsilon: float = 1e-6

    @property
    def n_rot(self) -> int:
        """Channels of a head that turn; with text the sections turn alike, so they only say how many."""
        return 2 * sum(self.rope_sections)

    @property
    def inner(self) -> int:
        """Channels of all values of a delta net."""
        return self.n_value_heads * self.state_size


def swiglu(gate: Tensor, up: Tensor) -> Tensor:
    """The usual gated activation."""
    return F.silu(gate) * up


def delta_net(q: Tensor, k: Tensor, v: Tensor, decay: Tensor, beta: Tensor) -> Tensor:
    """What the gated delta rule reads at each position.

    q, k, v are [batch, head, position, channel], decay and beta [batch, head, position].
    The state S is a matrix [key channel, value channel], zero at first. Each position does
    ``S *= exp(decay); S += outer(k, beta * (v - k @ S)); out = q @ S``. Within a chunk the changes depend on each other
    through a triangular system, which is solved for all chunks at once.
    """
    length = q.shape[-2]
    extra = -length % CHUNK
    q, k, v = (F.pad(x, (0, 0, 0, extra)).unflatten(-2, (-1, CHUNK)) for x in (q, k, v))
    decay, beta = (F.pad(x, (0, extra)).unflatten(-1, (-1, CHUNK)) for x in (decay, beta))
    total = decay.cumsum(-1)
    later = torch.ones(CHUNK, CHUNK, dtype=torch.bool).triu(1)
    fade = (total[..., :, None] - total[..., None, :]).masked_fill(later, -torch.inf).exp()
    since_start, until_end = total.exp()[..., None], fade[..., -1, :, None]
    system = beta[..., None] * fade * (k @ k.mT)
    known = beta[..., None] * torch.cat((v, since_start * k), dim=-1)
    from_values, from_state = torch.linalg.solve_triangular(system, known, upper=False, unitriangular=True).split(
        (v.shape[-1], k.shape[-1]), dim=-1
    )
    reads, writes = (q @ k.mT) * fade, (k * until_end).mT
    state, out = v.new_zeros(*v.shape[:2], k.shape[-1], v.shape[-1]), []
    for at in range(q.shape[2]):
        before = since_start[:, :, at]
        change = from_values[:, :, at] - from_state[:, :, at] @ state
        out.append(before * (q[:, :, at] @ state) + reads[:, :, at] @ change)
        state = before[:, :, -1:] * state + writes[:, :, at] @ change
    return torch.cat(out, dim=2)[:, :, :length]


class DeltaNet(nn.Module):  # type: ignore[misc]
    """The gated delta net of a layer: projections, a short convolution, the recurrence, a gated norm."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        self.n_keys = shape.n_key_heads * shape.state_size
        n_channels = 2 * self.n_keys + shape.inner
        self.attn_qkv = linear(shape.n_embd, n_channels)
        self.attn_gate = linear(shape.n_embd, shape.inner)
        self.ssm_alpha = linear(shape.n_embd, shape.n_value_heads, std=0.02)
        self.ssm_beta = linear(shape.n_embd, shape.n_value_heads, std=0.02)
        self.ssm_conv1d = nn.Parameter(torch.randn(n_channels, shape.kernel) * 0.5)
        self.a_log = nn.Parameter(torch.empty(shape.n_value_heads).uniform_(1, 8).log())
        step = torch.empty(shape.n_value_heads).uniform_(-7, -2).exp()
        self.ssm_dt = nn.Parameter(step.expm1().log())
        self.ssm_norm = Norm(shape.state_size, shape.epsilon)
        self.ssm_out = linear(shape.inner, shape.n_embd, std=0.3 * shape.inner**-0.5)

    def forward(self, x: Tensor, turn: Tensor) -> Tensor:
        shape, n_repeats = self.shape, self.shape.n_value_heads // self.shape.n_key_heads
        mixed = F.pad(self.attn_qkv(x).transpose(1, 2), (shape.kernel - 1, 0))
        mixed = F.silu(F.conv1d(mixed, self.ssm_conv1d[:, None], groups=len(self.ssm_conv1d)))
        q, k, v = (
            part.unflatten(1, (-1, shape.state_size)).transpose(2, 3)
            for part in mixed.split((self.n_keys, self.n_keys, shape.inner), dim=1)
        )
        # value head h goes with key head h modulo the number of key heads
        q, k = (
            (part * torch.rsqrt(part.square().sum(-1, keepdim=True) + shape.epsilon)).repeat(1, n_repeats, 1, 1)
            for part in (q, k)
        )
        decay = -self.a_log.exp() * F.softplus(self.ssm_alpha(x) + self.ssm_dt)
        beta = torch.sigmoid(self.ssm_beta(x))
        out = delta_net(q * shape.state_size**-0.5, k, v, decay.transpose(1, 2), beta.transpose(1, 2))
        out = self.ssm_norm(out.transpose(1, 2)) * F.silu(self.attn_gate(x)).unflatten(-1, (-1, shape.state_size))
        return self.ssm_out(out.flatten(2))


class Attention(nn.Module):  # type: ignore[misc]
    """Full attention: queries and keys normed, a part of their channels turned, what comes out gated."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        self.attn_q = linear(shape.n_embd, 2 * shape.n_heads * shape.head_dim)
        self.attn_k = linear(shape.n_embd, shape.n_kv_heads * shape.head_dim)
        self.attn_v = linear(shape.n_embd, shape.n_kv_heads * shape.head_dim)
        self.attn_q_norm = Norm(shape.head_dim, shape.epsilon)
        self.attn_k_norm = Norm(shape.head_dim, shape.epsilon)
        width = shape.n_heads * shape.head_dim
        self.attn_output = linear(width, shape.n_embd, std=0.3 * width**-0.5)

    def forward(self, x: Tensor, turn: Tensor) -> Tensor:
        shape = self.shape
        q, gate = self.attn_q(x).unflatten(-1, (shape.n_heads, 2, shape.head_dim)).unbind(-2)
        k, v = (matrix(x).unflatten(-1, (shape.n_kv_heads, shape.head_dim)) for matrix in (self.attn_k, self.attn_v))
        q, k = (rotate(part.transpose(1, 2), turn) for part in (self.attn_q_norm(q), self.attn_k_norm(k)))
        mixed = F.scaled_dot_product_attention(q, k, v.transpose(1, 2), is_causal=True, enable_gqa=True)
        return self.attn_output((mixed.transpose(1, 2) * torch.sigmoid(gate)).flatten(2))


class Layer(nn.Module):  # type: ignore[misc]
    """One of the two kinds of attention and the experts, each with a norm before and a residual around it."""

    def __init__(self, shape: Shape, is_full: bool) -> None:
        super().__init__()
        self.attn_norm = Norm(shape.n_embd, shape.epsilon)
        self.attention = Attention(shape) if is_full else DeltaNet(shape)
        self.post_attention_norm = Norm(shape.n_embd, shape.epsilon)
        self.ffn = Experts(shape.n_embd, shape.n_experts, shape.n_used, shape.expert_width, swiglu, bias=False)
        self.ffn_gate_inp_shexp = nn.Parameter(torch.zeros(shape.n_embd))
        self.ffn_gate_up_shexp = linear(shape.n_embd, 2 * shape.shared_width)
        self.ffn_down_shexp = linear(shape.shared_width, shape.n_embd, std=0.3 * shape.shared_width**-0.5)

    def forward(self, x: Tensor, turn: Tensor) -> Tensor:
        x = x + self.attention(self.attn_norm(x), turn)
        normed = self.post_attention_norm(x)
        shared = self.ffn_down_shexp(swiglu(*self.ffn_gate_up_shexp(normed).chunk(2, dim=-1)))
        gate = torch.sigmoid(normed @ self.ffn_gate_inp_shexp)[..., None]
        return x + self.ffn(normed) + gate * shared


class Deltas(nn.Module):  # type: ignore[misc]
    """The whole network; ``forward`` gives the last hidden states, ``logits`` turns chosen ones into scores."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        self.token_embd = nn.Embedding(VOCABULARY, shape.n_embd)
        nn.init.normal_(self.token_embd.weight, std=0.02)
        every = shape.full_attention_interval
        self.blk = nn.ModuleList(Layer(shape, (number + 1) % every == 0) for number in range(shape.n_layers))
        self.output_norm = Norm(shape.n_embd, shape.epsilon)
        self.register_buffer("turn", angles(shape.n_rot), persistent=False)

    def forward(self, tokens: Tensor) -> Tensor:
        """Hidden states [batch, position, channel] of tokens [batch, position]; each row starts at position 0."""
        assert tokens.shape[1] <= CONTEXT
        x = self.token_embd(tokens)
        for layer in self.blk:
            x = layer(x, self.turn[: tokens.shape[1]])
        return self.output_norm(x)

    def logits(self, hidden: Tensor) -> Tensor:
        """Scores [..., vocabulary]; the head is the embedding table."""
        return F.linear(hidden, self.token_embd.weight)
