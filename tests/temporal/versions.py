"""A workflow in two versions: the second one has another step."""

from flowcore import Workflow


def workflows(build: str = "1") -> list[Workflow]:
    wf = Workflow("order")
    wf.wait("paid")
    before = "paid"
    if build == "2":
        before = wf.add_step("check", lambda ctx: "checked", depends_on=before, on_crash="hold").name
    wf.add_step("ship", lambda ctx: f"shipped by {build}", depends_on=before)
    return [wf]
