"""Paths through a tree whose edges are listed: to take the right branch, look ahead to the goal."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from positionbias.arrays import Bool, Float, Int, Key, Tree
from positionbias.spec import member, require
from positionbias.tasks.base import Batch, Condition, Size, Task, letters, one_of
from positionbias.tasks.chains import kept_or_reversed
from positionbias.tasks.sampling import distinct, permutation
from positionbias.tokens import Tokens, sequential

MOST_NODES = 256  # a tree is grown node by node, and the rules compare all pairs
MOST_LABELS = 65536
COMMA, BAR, COLON = range(3)
FIRST_LABEL = 3
SOURCE_ROLE, TARGET_ROLE, MARK_ROLE, GOAL_ROLE, PATH_ROLE = range(5)


@member("tasks", "tree_paths")
@dataclasses.dataclass(frozen=True)
class TreePaths(Task):
    """The next step from the root to a leaf of a binary tree (Brinkmann et al. 2024, arXiv 2402.11917).

    The prompt lists the edges of a tree with `nodes` nodes, each with two children at most, then the goal, which is a
    leaf, and the root. The path follows up to one of its nodes, whose row says the next; commas fill up the sequence. A
    node has two tokens, x where an edge starts and >x where it ends.

    One sample of `tree_paths(nodes=6, longest=5, labels=6)`:

        input    b >d , e >f , d >c , f >b , a >e | c : a >e >f >b ,
        target   . .  . . .  . . .  . . .  . . .  . . . . .  .  >d .

    The paper's loss is on every token of paths of all lengths. Here one step is asked for an example, so that every
    example has one answer: paths of 1 to `longest` edges and their steps, all pairs equally likely. An answer weighs as
    much as in the paper's loss, and nothing leaks.

    A tree is grown edge by edge. When the edges of the path are grown is drawn uniformly; a second path of uniform
    length leads elsewhere, and every other node goes to a uniform one that has room. Conditions: edges stand as they
    were grown ("forward"), in the reverse ("backward": children before their parents), in any order ("shuffled");
    "train" is half backward, half shuffled, as in the paper. There the second path begins at the root, and backward is
    by depth. Here the edge that is asked for is in every slot equally often, in any of the orders.

    Segments are the edges, numbered from 1 as they stand. Evidence is the edges from the goal up to the answer. `order`
    is 0 where they stand in that order, 1 in its reverse; -1 otherwise, and where there is only one. Vocabulary: three
    marks, then the nodes as sources, then as targets.
    """

    nodes: int = 16
    longest: int = 15
    labels: int = 16

    filler = COMMA
    movable = True
    slots_are_segments = True
    query_axis = "edges from the answer to the goal"
    evidence_axis = "slot of the edge to the answer"

    def __post_init__(self) -> None:
        require(3 <= self.nodes <= MOST_NODES, "nodes", self.nodes, f"a whole number from 3 to {MOST_NODES}")
        most = self.nodes - 1
        require(1 <= self.longest <= most, "longest", self.longest, f"1 to {most} edges, which {self.nodes} nodes have")
        what = f"a whole number from {self.nodes}, one a node, to {MOST_LABELS}"
        require(self.nodes <= self.labels <= MOST_LABELS, "labels", self.labels, what)

    # ---- static

    @property
    def _edges(self) -> int:
        return self.nodes - 1

    @property
    def _goal_row(self) -> int:
        return 3 * self._edges

    @property
    def _root_row(self) -> int:
        return 3 * self._edges + 2

    @property
    def _first_target(self) -> int:
        return FIRST_LABEL + self.labels

    @property
    def input(self) -> Size:
        return Size("tokens", FIRST_LABEL + 2 * self.labels)

    @property
    def output(self) -> Size:
        return self.input

    def conditions(self) -> tuple[Condition, ...]:
        orders = {"train": ("backward", "shuffled")} | {name: (name,) for name in ("backward", "shuffled", "forward")}
        return tuple(Condition(name, (("orders", drawn),)) for name, drawn in orders.items())

    def stretched(self, factor: int) -> TreePaths:
        nodes = factor * self.nodes
        what = f"a whole number from {nodes}, one for each node of the longer tree, set before training"
        require(nodes <= self.labels or nodes > MOST_NODES, "labels", self.labels, what)
        return dataclasses.replace(self, nodes=nodes)

    def length(self, condition: Condition) -> int:
        return self._root_row + self.longest

    def context_length(self, condition: Condition) -> int:
        return self._root_row

    def query_rows(self, condition: Condition) -> Int[np.ndarray, "Q"]:
        return self._root_row + np.arange(self.longest)

    def tokens(self, condition: Condition) -> Tokens:
        role = np.full(self.length(condition), PATH_ROLE, np.int32)
        role[: self._root_row] = [SOURCE_ROLE, TARGET_ROLE, MARK_ROLE] * self._edges + [GOAL_ROLE, MARK_ROLE]
        number = np.repeat(np.arange(1, self.nodes), 3)
        segment = np.zeros_like(role)
        segment[: self._goal_row] = np.where(np.arange(self._goal_row) % 3 < 2, number, 0)
        return sequential(len(role), role=role, segment=segment)

    def prior(self, condition: Condition) -> dict[str, Float[np.ndarray, "P"]]:
        pairs = np.arange(self.longest, 0, -1)  # so many paths have a step that is this far from the goal
        return {"query": pairs / pairs.sum(), "evidence": np.full(self._edges, 1 / self._edges)}

    def word(self, token: int) -> str:
        if token < FIRST_LABEL:
            return ",|:"[token]
        if token < self._first_target:
            return letters(token - FIRST_LABEL)
        return ">" + letters(token - self._first_target)

    # ---- sampled

    def _path(self, key: Key[jax.Array, ""]) -> tuple[jax.Array, jax.Array]:
        """How many edges the path has, and how many of them have been gone: every pair equally likely."""
        edges, gone = np.tril_indices(self.longest)
        pair = jax.random.randint(key, (), 0, len(gone))
        return jnp.asarray(edges + 1, jnp.int32)[pair], jnp.asarray(gone, jnp.int32)[pair]

    def _grown(self, key: Key[jax.Array, ""], length: Int[jax.Array, ""]) -> tuple[jax.Array, jax.Array]:
        """The parent of every node but the root, i32[N - 1], and which of them the path leads to, bool[N - 1].

        Nodes are numbered as they are grown, from the root, 0.
        """
        time_key, second_key, parent_key = jax.random.split(key, 3)
        times = permutation(time_key, self._edges)
        left = self._edges - length
        second = jnp.where(left > 0, jax.random.randint(second_key, (), 1, jnp.maximum(left, 1) + 1), 0)
        on_path, on_second = times < length, (times >= length) & (times < length + second)
        place, second_place = jnp.cumsum(on_path), jnp.cumsum(on_second)
        # Room is kept for what goes on from a path's end, and the goal stays a leaf.
        room = 2 - (on_path | (on_second & (second_place < second))) - (on_path & (place == length))
        draws = jax.random.uniform(parent_key, (self._edges, self.nodes))
        node = jnp.arange(self.nodes)

        def grow(state: Any, new: Any) -> tuple[Any, jax.Array]:
            rooms, end, second_end = state
            number, is_path, is_second, its_room, draw = new
            follows = is_second & (second_end >= 0)
            anywhere = jnp.argmax(jnp.where(rooms > 0, draw, -1.0)).astype(jnp.int32)
            parent = jnp.where(is_path, end, jnp.where(follows, second_end, anywhere))
            rooms = rooms - ((node == parent) & ~is_path & ~follows) + (node == number) * its_room
            return (rooms, jnp.where(is_path, number, end), jnp.where(is_second, number, second_end)), parent

        start = ((node == 0).astype(jnp.int32), jnp.zeros((), jnp.int32), jnp.full((), -1, jnp.int32))
        numbers = jnp.arange(1, self.nodes, dtype=jnp.int32)
        _, parents = jax.lax.scan(grow, start, (numbers, on_path, on_second, room, draws))
        return parents, on_path

    def sample(self, key: Key[jax.Array, ""], condition: Condition, world: Tree = ()) -> Batch:
        path_key, tree_key, label_key, order_key, kind_key = jax.random.split(key, 5)
        length, gone = self._path(path_key)
        parents, on_path = self._grown(tree_key, length)
        labels = distinct(label_key, self.nodes, self.labels)
        slot = jnp.arange(self._edges, dtype=jnp.int32)
        ordered = {"forward": slot, "backward": slot[::-1], "shuffled": permutation(order_key, self._edges)}
        orders = condition["orders"]
        kind = jax.random.randint(kind_key, (), 0, len(orders))
        slots = jnp.stack([ordered[name] for name in orders])[kind]

        # The nodes of the path by their place, root first, and the edge to each of them.
        place = jnp.where(on_path, jnp.cumsum(on_path), self.nodes)
        on = jnp.zeros(self.longest + 1, jnp.int32).at[place].set(slot + 1, mode="drop")
        rows = 3 * slots
        nothing = jnp.full(self.length(condition), COMMA, jnp.int32)
        inputs = nothing.at[rows].set(FIRST_LABEL + labels[parents]).at[rows + 1].set(self._first_target + labels[1:])
        question = [BAR, FIRST_LABEL + labels[on[length]], COLON]
        inputs = inputs.at[self._goal_row - 1 : self._root_row].set(jnp.array(question, jnp.int32))
        step = jnp.arange(self.longest)
        path = jnp.where(step <= gone, self._first_target + labels[on[:-1]], COMMA)
        inputs = inputs.at[self._root_row :].set(path.at[0].set(FIRST_LABEL + labels[0]))

        query = self._root_row + gone[None]
        edge = slots[on[length - step] - 1]  # from the goal up
        evidence = jnp.where(step[:, None] < length - gone, 3 * edge[:, None] + jnp.arange(2), -1).reshape(1, -1)
        asked = slots[on[gone + 1] - 1][None]
        zero = jnp.zeros(1, jnp.int32)
        return Batch(
            inputs=inputs,
            targets=jnp.zeros_like(nothing).at[query].set(self._first_target + labels[on[gone + 1]]),
            weights=jnp.zeros(nothing.shape).at[query].set(1.0),
            tokens=self.tokens(condition),
            query=query,
            evidence=evidence,
            order=_order(evidence),
            distance=query - 3 * asked - 1,
            n_distractors=zero + self._edges - 1,
            source=zero - 1,
            query_slot=(length - gone - 1)[None],
            evidence_slot=asked,
        )

    def after_move(self, example: Batch) -> Batch:
        return example._replace(order=_order(example.evidence))

    # ---- judged

    def _seen(self, example: Batch, visible: jax.Array) -> tuple[jax.Array, ...]:
        """Labels of sources and targets of the edges by their slot, and which of them are seen; what the row sees."""
        row = visible[example.query[0]]
        starts = 3 * jnp.arange(self._edges)
        sources, targets = example.inputs[starts] - FIRST_LABEL, example.inputs[starts + 1] - self._first_target
        return sources, targets, row[starts], row[starts + 1], row

    def _question(self, example: Batch, row: jax.Array) -> tuple[jax.Array, ...]:
        """How many edges have been gone; the label of the node at each place of the path so far, -1 elsewhere, and
        which of them are seen; the label of the goal and whether it is seen."""
        gone, step = example.query[0] - self._root_row, jnp.arange(self.longest)
        path = example.inputs[self._root_row :] - jnp.where(step == 0, FIRST_LABEL, self._first_target)
        path = jnp.where(step <= gone, path, -1)
        goal = example.inputs[self._goal_row] - FIRST_LABEL
        return gone, path, row[self._root_row :] & (step <= gone), goal, row[self._goal_row]

    def ceiling(self, example: Batch, visible: Bool[jax.Array, "T T"]) -> Float[jax.Array, "A"]:
        """Exact in two cases: the row sees the goal, every edge from it up to the answer and the node that it stands
        at; or it sees no node of any edge. nan otherwise."""
        _, _, source_seen, target_seen, row = self._seen(example, visible)
        gone, _, path_seen, _, goal_seen = self._question(example, row)
        whole = jnp.all((example.evidence[0] < 0) | row[example.evidence[0]])
        sure = whole & goal_seen & path_seen[gone]
        # Without an edge: the goal is next if the path has one edge more, else any node that has not been seen.
        others = self.labels - jnp.sum(path_seen)
        is_goal = 1 / (self.longest - gone)
        named = jnp.maximum(is_goal, (1 - is_goal) / jnp.maximum(others - 1, 1))
        guess = jnp.where(goal_seen, named, 1 / others)
        blind = ~jnp.any(source_seen | target_seen)
        return jnp.where(sure, 1.0, jnp.where(blind, guess, jnp.nan))[None]

    def baselines(self, example: Batch, visible: Bool[jax.Array, "T T"]) -> dict[str, Float[jax.Array, "A"]]:
        """chance and majority: any label; nearest: the last target seen in an edge; order_free: has a bag of the tokens
        seen, and says the goal or any other node off the path that has children, whichever is likelier if what is left
        may be of any length (the best reader of a bag would weigh all trees, and is not known in closed form); child:
        any child of the node that it stands at; look_ahead: the goal if it is a child of that node, else any child;
        deeper: likewise, but takes the child that the longest way leads down from."""
        sources, targets, source_seen, target_seen, row = self._seen(example, visible)
        gone, path, path_seen, goal, goal_seen = self._question(example, row)
        answer = example.targets[example.query[0]] - self._first_target
        chance = jnp.full((), 1 / self.labels)

        def said(candidates: jax.Array, names: jax.Array) -> jax.Array:
            return one_of(candidates, names == answer, chance)

        last = jnp.max(jnp.where(target_seen, jnp.arange(self._edges), -1))
        walked = jnp.any((targets[:, None] == path) & path_seen, axis=-1)
        inner = jnp.any((targets[:, None] == sources) & source_seen, axis=-1) & target_seen & ~walked
        longest = jnp.minimum(self.longest - gone, jnp.sum(inner) + 1)  # that the rest of the path can be
        says_goal = goal_seen & (jnp.sum(inner) >= longest - 1)  # one way of `longest`, against any inner node

        whole = source_seen & target_seen
        child = whole & (sources == path[gone]) & path_seen[gone]
        to_goal = child & (targets == goal) & goal_seen
        down = (targets[:, None] == sources) & whole[:, None] & whole  # edge by edge
        depth = jax.lax.fori_loop(
            0, self._edges, lambda _, d: jnp.max(jnp.where(down, d + 1, 0), axis=-1), jnp.zeros_like(targets)
        )
        deepest = child & (depth == jnp.max(jnp.where(child, depth, -1)))
        found = {
            "chance": chance,
            "majority": chance,
            "nearest": said(jnp.arange(self._edges) == last, targets),
            "order_free": jnp.where(says_goal, goal == answer, said(inner, targets)),
            "child": said(child, targets),
            "look_ahead": jnp.where(jnp.any(to_goal), goal == answer, said(child, targets)),
            "deeper": jnp.where(jnp.any(to_goal), goal == answer, said(deepest, targets)),
        }
        return {name: value.astype(jnp.float32)[None] for name, value in found.items()}


def _order(evidence: Int[jax.Array, "A E"]) -> Int[jax.Array, "A"]:
    """0 where the edges stand as they are needed, 1 in the reverse, -1 otherwise and for a single edge."""
    rows = evidence[:, ::2]
    return kept_or_reversed(rows[:, 1:] > rows[:, :-1], rows[:, 1:] >= 0)
