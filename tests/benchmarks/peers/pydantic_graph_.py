"""pydantic-graph: async steps, broadcasts and joins. No retries, no undoing."""

# What is imported here need not be installed.
# mypy: disable-error-code="import-not-found, import-untyped, misc, override, type-arg, unused-ignore"
# pyright: reportMissingImports=false

from __future__ import annotations

from typing import Any

from pydantic_graph import GraphBuilder, StepContext, reduce_null

from ..subjects import Run, Subject
from ..work import Fn, Work


class PydanticGraph(Subject):
    name = "pydantic-graph"
    is_async = True
    cannot = frozenset({"retry", "undo"})

    def prepare(self, work: Work) -> Run:
        builder: Any = GraphBuilder(output_type=object)

        def step_of(fn: Fn) -> Any:
            async def call(context: StepContext[Any, Any, Any]) -> None:
                await fn({})

            return call

        nodes = {step.name: builder.step(step_of(step.fn), node_id=step.name) for step in work.steps}
        followers: dict[str | None, list[Any]] = {}
        for step in work.steps:
            entry = nodes[step.name]
            if len(step.after) > 1:
                entry = builder.join(reduce_null, initial=None, node_id=f"before {step.name}")
                builder.add(builder.edge_from(entry).to(nodes[step.name]))
            for name in step.after or (None,):
                followers.setdefault(name, []).append(entry)
        ends = [name for name in nodes if name not in followers]
        end = builder.end_node
        if len(ends) > 1:
            end = builder.join(reduce_null, initial=None, node_id="before the end")
            builder.add(builder.edge_from(end).to(builder.end_node))
        for name in ends:
            followers[name] = [end]
        for name, after in followers.items():
            builder.add(builder.edge_from(builder.start_node if name is None else nodes[name]).to(*after))
        run: Run = builder.build().run
        return run


SUBJECTS = (PydanticGraph,)
