"""The autograd graph of a step's losses: what it reaches, where it can be cut, passes through its segments."""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Collection, Generator, Hashable, Iterable, Sequence
from contextlib import suppress
from functools import cache
from typing import Any, NamedTuple

from torch import Tensor
from torch.autograd.graph import GradientEdge

from mmpareto.integration.reduction import add_gradients, set_gradients

Node = Any  # torch.autograd.graph.Node; its attributes are made for each operation
SMALLEST_SEGMENT = 12  # nodes


class Walk(NamedTuple):
    """The nodes that a walk reached, and those of earlier walks at which it turned back."""

    nodes: set[Node]
    met: set[Node]


def walk(losses: Iterable[Tensor], earlier: Collection[Node] = frozenset()) -> Walk:
    """Collect the nodes of the losses' graphs that are not in `earlier`, nor reached through it alone.

    It costs about 2 microseconds a node: 0.2 ms for two ResNet-18.
    """
    reached, met = set[Node](), set[Node]()
    stack: list[Node] = [loss.grad_fn for loss in losses if loss.grad_fn is not None]
    while stack:
        node = stack.pop()
        if node in earlier:
            met.add(node)
        elif node not in reached:
            reached.add(node)
            stack += [following for following, _ in node.next_functions if following is not None]
    return Walk(reached, met)


def leaves(graph: Iterable[Node]) -> list[Tensor]:
    """The leaf tensors among the nodes: those that a backward pass gives a gradient."""
    # by name: a function of the user's own may have an attribute `variable` too
    return [node.variable for node in graph if type(node).__name__ == "AccumulateGrad"]


class Segment(NamedTuple):
    """A part of a graph through which a backward pass goes before it enters the next one.

    Attributes:
        leaves: ids of the leaf tensors that it reaches.
        end: the node through which alone everything behind is reached; None in the last segment.
    """

    leaves: set[int]
    end: Node | None


def segments(losses: Iterable[Tensor], nodes: set[Node], upstream: Collection[Node]) -> list[Segment]:
    """Cut the graph of an encoder's losses into segments, from the losses to the inputs.

    Cuts are at additions behind which nothing is reached past them: the ends of residual blocks. An addition keeps no
    tensor for the backward pass, so that it can be computed after its graph was freed. A segment has half of the nodes
    that are left, or more: segments become smaller towards the input, where activations are largest, and few passes do.

    Args:
        losses: all losses that reach the encoder.
        nodes: of its branch.
        upstream: nodes that the joint loss alone reaches.
    """
    if len(nodes) < 4 * SMALLEST_SEGMENT:  # not worth the search
        return [Segment({id(leaf) for leaf in leaves([*nodes, *upstream])}, None)]
    following = {
        node: [after for after, _ in node.next_functions if after in nodes or after in upstream]
        for node in (*nodes, *upstream)
    }
    waiting = Counter(after for others in following.values() for after in others)
    roots: set[Node] = {loss.grad_fn for loss in losses}
    # in the order of the backward pass: each node after all that lead to it, the last of the forward pass first
    ready = [(-node._sequence_nr(), id(node), node) for node in roots if not waiting[node]]
    partly = {node for node in roots if waiting[node]}  # reached, but not by all that lead to it
    heapq.heapify(ready)
    cut: list[Segment] = []
    left, size, reached = len(nodes), 0, list[Node]()
    while ready:
        node = heapq.heappop(ready)[-1]
        if size >= max(SMALLEST_SEGMENT, left / 2) and not ready and not partly and _adds_equal_shapes(node):
            cut.append(Segment({id(leaf) for leaf in leaves(reached)}, node))
            left, size, reached = left - size, 0, []
        size += node in nodes
        reached.append(node)
        for after in following[node]:
            waiting[after] -= 1
            partly.add(after)
            if not waiting[after]:
                partly.discard(after)
                heapq.heappush(ready, (-after._sequence_nr(), id(after), after))
    return [*cut, Segment({id(leaf) for leaf in leaves(reached)}, None)]


def _adds_equal_shapes(node: Node) -> bool:
    """Whether a node is an addition whose gradient goes on as it is: no operand was broadcast."""
    if type(node).__name__ != "AddBackward0" or node._input_metadata[0].is_cpp_nested_tensor:  # which has no shape
        return False
    shape = node._input_metadata[0].shape
    return all(after is None or after._input_metadata[nr].shape == shape for after, nr in node.next_functions)


class Front(NamedTuple):
    """Where a backward pass stands: the edges that it goes on from, and the gradients there; None for losses."""

    edges: Sequence[Any]
    gradients: Sequence[Tensor] | None = None


def backward(front: Front, segment: Segment, inputs: Sequence[Tensor], retain_graph: bool) -> Front:
    """Go through a segment, as `torch.autograd.backward` does, and give where the pass enters the next one.

    Args:
        inputs: leaf tensors of the segment that get a gradient.
    """
    end = segment.end
    if not front.edges or (end is None and not inputs):
        return Front([])
    if end is None:
        add_gradients(front.edges, inputs, front.gradients, retain_graph=retain_graph)
        return Front([])
    entering: list[Tensor | None] = [None]
    with end.register_prehook(lambda gradients: entering.__setitem__(0, gradients[0])):
        beyond = [GradientEdge(end, 0)]
        add_gradients(front.edges, inputs, front.gradients, beyond=beyond, retain_graph=retain_graph)
    if entering[0] is None:  # nothing leads there
        return Front([])
    # as an input of the pass the addition computed nothing
    pairs = [
        (GradientEdge(*edge), gradient)
        for edge, gradient in zip(end.next_functions, end(entering[0]), strict=True)
        if edge[0] is not None and gradient is not None
    ]
    return Front([edge for edge, _ in pairs], [gradient for _, gradient in pairs])


def both_passes(
    parameters: list[Tensor],
    joint_heads: list[Tensor],
    heads: list[Tensor],
    joint_loss: Tensor,
    unimodal_losses: Sequence[Tensor],
    segments: Sequence[Segment],
) -> Generator[None, None, tuple[list[Tensor | None], list[Tensor | None]]]:
    """Both passes through one encoder, by segments: the second frees a segment before the first enters the next one.

    Heads gather the sum of both gradients in `.grad`; the encoder's are taken from there.

    Args:
        parameters: of the encoder.
        joint_heads: those that the joint pass gives a gradient.
        heads: all heads.
        segments: of the graph, from the losses to the inputs.

    Yields:
        After each pass through a segment.

    Returns:
        The joint and the unimodal gradient of each parameter.
    """
    sets: tuple[dict[int, Tensor | None], ...] = ({}, {})
    fronts = [Front([joint_loss]), Front(unimodal_losses)]
    later = set().union(*(segment.leaves for segment in segments[1:]))
    for number, segment in enumerate(segments):
        inside = [p for p in parameters if id(p) in segment.leaves]
        for k, of_heads in enumerate((joint_heads, heads)):
            reached = [p for p in of_heads if id(p) in segment.leaves or (not number and id(p) not in later)]
            fronts[k] = backward(fronts[k], segment, [*inside, *reached], retain_graph=not k)
            sets[k].update((id(p), p.grad) for p in inside)
            set_gradients(inside, None)
            yield
    joint, unimodal = ([of_set.get(id(p)) for p in parameters] for of_set in sets)
    return joint, unimodal


def release(graph: Iterable[Node]) -> None:
    """Free what the nodes keep for a backward pass, as `backward` does without retain_graph.

    For the nodes that only the first of two passes reaches: that pass has to retain the graph which both share, and no
    later pass frees the rest. A second backward pass through them is an error, as after any backward pass. What is
    packed by saved-tensor hooks (activation checkpointing, `save_on_cpu`) stays until the losses are gone.
    """
    for node in graph:
        node_class: Any = type(node)
        for name in _saved_names(node_class):
            saved = getattr(node, name)
            for tensor in saved if isinstance(saved, tuple | list) else (saved,):
                with suppress(RuntimeError, AttributeError):  # nothing is saved, or hooks hold it
                    tensor.register_hooks(_drop, _freed)  # PyTorch lets go of a saved tensor when it is packed


@cache
def _saved_names(node_class: Hashable) -> tuple[str, ...]:
    return tuple(name for name in dir(node_class) if name.startswith("_raw_saved_"))


def _drop(tensor: Tensor) -> None:
    del tensor


def _freed(packed: None) -> Tensor:
    raise RuntimeError(
        "this graph was freed by Integrator.backward, as loss.backward() frees it; run the forward pass again for "
        "another backward pass"
    )
