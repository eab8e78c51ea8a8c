"""A gate as JUnit XML, as CI servers read it. Knows no run and no file.

There is no one standard; this keeps to what Jenkins' schema (junit-10.xsd of its xUnit plugin), GitLab and the actions for GitHub have in
common: `testsuites` over one `testsuite` with its counts, first `properties`, then a `testcase` each with `classname`, `name` and `time`,
and in it at most one of `failure`, `error` and `skipped`, each with a `message`.

**What is what.** Only the primary contrast decides the gate, so only it can fail: a server shows red exactly when the exit code is not 0.
A secondary contrast that is better or non-inferior passes; one that is worse or inconclusive is skipped, with its sentence. A trial that
ends without a verdict is one test case with an `error`.
"""

from __future__ import annotations

import re
from xml.etree import ElementTree as Xml

from flows.gate import Gate, GatedContrast

_NOT_XML = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
"""What XML 1.0 (section 2.2) has no place for."""


def junit(gate: Gate) -> str:
    """The test report: a test case for every contrast, the primary first."""
    outcome = gate.outcome
    suite = Xml.Element("testsuite", name=_clean(gate.trial), timestamp=outcome.finished[:19])
    properties = Xml.SubElement(suite, "properties")
    for name, value in (("run", gate.run), ("verdict", outcome.verdict), ("gate", outcome.gate), ("report", str(outcome.report))):
        Xml.SubElement(properties, "property", name=name, value=_clean(value))
    for contrast in (gate.primary, *gate.secondary):
        # The trial took its time once; servers add up what test cases took.
        _case(suite, gate, contrast, outcome.seconds if contrast.primary else 0.0)
    return _written(suite, outcome.seconds)


def junit_of_failure(trial: str, message: str) -> str:
    """The test report where there is no verdict."""
    suite = Xml.Element("testsuite", name=_clean(trial))
    case = Xml.SubElement(suite, "testcase", classname=_clean(f"tunetrial.{trial}"), name="verdict", time="0.000")
    first = _clean(message).splitlines()[0] if message else ""
    Xml.SubElement(case, "error", message=first, type="error").text = _clean(message)
    return _written(suite, 0.0)


def _case(suite: Xml.Element, gate: Gate, contrast: GatedContrast, seconds: float) -> None:
    name = f"{contrast.arm} against {contrast.control} on {contrast.criterion}{' (primary)' if contrast.primary else ''}"
    case = Xml.SubElement(suite, "testcase", classname=_clean(f"tunetrial.{gate.trial}"), name=_clean(name), time=f"{seconds:.3f}")
    sentence = _clean(contrast.sentence)
    if contrast.passes:
        Xml.SubElement(case, "system-out").text = _said(contrast)
    elif contrast.primary:
        Xml.SubElement(case, "failure", message=sentence, type=contrast.verdict.value).text = _said(contrast)
    else:
        Xml.SubElement(case, "skipped", message=f"{sentence} (secondary: does not decide the gate)")


def _said(contrast: GatedContrast) -> str:
    return _clean("\n".join([contrast.sentence, *(f"note: {note}" for note in contrast.notes)]))


def _written(suite: Xml.Element, seconds: float) -> str:
    counts = {"tests": len(suite.findall("testcase"))}
    counts |= {name: len(suite.findall(f"testcase/{tag}")) for name, tag in _COUNTED}
    root = Xml.Element("testsuites", name="tunetrial")
    for element in (root, suite):
        for name, count in counts.items():
            element.set(name, str(count))
        element.set("time", f"{seconds:.3f}")
    root.append(suite)
    Xml.indent(root)
    return Xml.tostring(root, encoding="unicode", xml_declaration=False).join(('<?xml version="1.0" encoding="UTF-8"?>\n', "\n"))


_COUNTED = (("failures", "failure"), ("errors", "error"), ("skipped", "skipped"))


def _clean(text: str) -> str:
    return _NOT_XML.sub("\ufffd", text)
