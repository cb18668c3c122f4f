"""Divergences of logits whose vocabulary is spread over devices: row scalars travel, logits stay where they are."""

from __future__ import annotations

import functools
import math

import jax
import jax.numpy as jnp
from jax.custom_derivatives import CustomVJPPrimal, SymbolicZero
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from jax.typing import ArrayLike

from divax.divergences.base import AbstractDivergence, _prepare, _with_dtype
from divax.divergences.f_divergence import AbstractFDivergence
from divax.divergences.row_form import DivergenceForm, Mass, Part


def vocabulary_parallel(
    div: AbstractDivergence,
    target: ArrayLike,
    model: ArrayLike,
    *,
    mesh: Mesh,
    spec: PartitionSpec,
) -> jax.Array:
    """D(softmax(target), softmax(model)) where every device holds a part of the vocabulary of both.

    An f-divergence takes at most four all-reduces of `[N]` scalars: the maxima, the sums of exponentials, and the
    values together with what the softmax Jacobian needs; the backward pass takes none, and logits never leave their
    device. Any other divergence gets whole rows by an all-to-all, each device its share of them, and the values are
    gathered.

    Args:
        div: any divergence.
        target: logits `[..., V]`, V a multiple of the devices it is spread over.
        model: likewise, of the same shape.
        mesh: the devices.
        spec: how the logits lie on it, such as `PartitionSpec("data", None, "vocabulary")`; the last entry names
            the axis or axes of the vocabulary.

    Returns:
        `[...]`, as `div(target, model)`, replicated over the vocabulary's axes. For f-divergences in reverse mode only, and
        without gradients by their parameters.

    Raises:
        ValueError: logits of different shapes, or a spec that does not say where the vocabulary lies.
        TypeError: a derivative by a parameter of an f-divergence.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from jax.sharding import PartitionSpec as P
        >>> from divax import divergences as dv
        >>> mesh = jax.make_mesh((1,), ("vocabulary",))
        >>> t, s = jnp.zeros((2, 4)), jnp.array([[0.0, 1.0, 2.0, 3.0]] * 2)
        >>> rows = vocabulary_parallel(dv.ForwardKL(), t, s, mesh=mesh, spec=P(None, "vocabulary"))
        >>> bool(jnp.allclose(rows, dv.ForwardKL()(t, s)))
        True

    Source: the scheme for cross-entropy is M. Shoeybi et al., "Megatron-LM: Training Multi-Billion Parameter Language
    Models Using Model Parallelism", arXiv:1909.08053, §3.
    """
    target, model = _prepare(target, model, None)
    if len(spec) != target.ndim or spec[-1] is None:
        raise ValueError(
            f"spec {spec} must have an entry for each of {target.ndim} axes, the last one naming the vocabulary's"
        )
    if AxisType.Explicit in mesh.axis_types:
        target, model = (jax.reshard(x, NamedSharding(mesh, spec)) for x in (target, model))
    div = _with_dtype(div, target.dtype)
    if isinstance(div, AbstractFDivergence):
        return _parallel_rows(mesh, spec, div, target, model)
    return _whole_rows(mesh, spec, div, target, model)


def _shard_map(fun, mesh, in_specs, out_specs):
    return jax.shard_map(fun, mesh=mesh, in_specs=in_specs, out_specs=out_specs, check_vma=False)


# ---- f-divergences ------------------------------------------------------------------------------------------------


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _parallel_rows(mesh, spec, div, target, model):
    return _forward(mesh, spec, div, target, model, (False, False))[0]


def _forward(mesh, spec, div, target, model, wanted):
    """The rows, and the scalars of each from which the gradients follow."""
    rows = PartitionSpec(*spec[:-1])
    fun = functools.partial(_of_shard, axis=spec[-1], wanted=wanted)
    return _shard_map(fun, mesh, (PartitionSpec(), spec, spec), rows)(div, target, model)


def _of_shard(div, target, model, *, axis, wanted):
    lead = target.shape[:-1]
    part = _part(target, model)
    form = DivergenceForm(div=div)
    first = form.first(part)
    tops = jnp.stack([first.target.top, first.model.top])
    top = jax.lax.pmax(tops, axis)
    shift = jnp.where(jnp.isinf(top), 0, top)
    totals = jnp.stack([first.target.total, first.model.total]) * jnp.exp(tops - shift)
    total = jax.lax.psum(totals, axis)
    first = first._replace(target=Mass(top[0], total[0]), model=Mass(top[1], total[1]))
    sums = form.values(first, part), form.slopes(first, part, wanted)
    values, slopes = jax.lax.psum(sums, axis)
    out = form.outputs(first, values, None)[0]
    return jax.tree.map(lambda x: x.reshape(*lead, *x.shape[1:]), (out, (first, slopes)))


def _part(target: jax.Array, model: jax.Array) -> Part:
    size = target.shape[-1]
    return Part((target.reshape(-1, size), model.reshape(-1, size)), jnp.arange(size), None)


def _parallel_fwd(mesh, spec, div, target, model):
    leaves = jax.tree.leaves(div, is_leaf=lambda x: isinstance(x, CustomVJPPrimal))
    if any(leaf.perturbed for leaf in leaves):
        raise TypeError(
            "vocabulary_parallel gives no gradient by a divergence's parameters: stop it, or call the divergence itself"
        )
    value = lambda x: x.value  # noqa: E731
    div = jax.tree.map(value, div, is_leaf=lambda x: isinstance(x, CustomVJPPrimal))
    wanted = target.perturbed, model.perturbed
    out, known = _forward(mesh, spec, div, target.value, model.value, wanted)
    return out, (div, target.value, model.value, known)


def _parallel_bwd(mesh, spec, kept, cotangent):
    div, target, model, known = kept
    if isinstance(cotangent, SymbolicZero):
        return None, None, None
    wanted = tuple(side is not None for side in known[1])
    rows = PartitionSpec(*spec[:-1])
    fun = functools.partial(_pulled, wanted=wanted)
    in_specs = PartitionSpec(), spec, spec, rows, rows
    by = _shard_map(fun, mesh, in_specs, (spec,) * sum(wanted))(
        div, target, model, known, cotangent
    )
    by = iter(by)
    return None, *(next(by) if want else None for want in wanted)


def _pulled(div, target, model, known, cotangent, *, wanted):
    count, lead = math.prod(cotangent.shape), cotangent.ndim
    first, slopes = jax.tree.map(lambda x: x.reshape(count, *x.shape[lead:]), known)
    part = _part(target, model)
    by = DivergenceForm(div=div).gradient(first, slopes, cotangent.reshape(count), part, wanted)
    return tuple(one.reshape(target.shape) for one in by if one is not None)


_parallel_rows.defvjp(_parallel_fwd, _parallel_bwd, symbolic_zeros=True)


# ---- all others ---------------------------------------------------------------------------------------------------


def _whole_rows(mesh, spec, div, target, model):
    names = spec[-1] if isinstance(spec[-1], tuple) else (spec[-1],)
    devices = math.prod(mesh.shape[name] for name in names)

    def of_shard(div, target, model):
        lead, count = target.shape[:-1], math.prod(target.shape[:-1])

        def whole(x: jax.Array) -> jax.Array:
            x = jnp.pad(x.reshape(count, -1), ((0, -count % devices), (0, 0)))
            return jax.lax.all_to_all(x, names, split_axis=0, concat_axis=1, tiled=True)

        rows = div.rows(whole(target), whole(model))
        return jax.lax.all_gather(rows, names, tiled=True)[:count].reshape(lead)

    everywhere, rows = PartitionSpec(), PartitionSpec(*spec[:-1])
    return _shard_map(of_shard, mesh, (everywhere, spec, spec), rows)(div, target, model)
