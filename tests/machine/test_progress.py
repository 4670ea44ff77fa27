"""How far a long piece of work is, where nobody looks at a terminal."""

from dida.machine.progress import Progress


def test_progress_is_lines_where_there_is_no_terminal(capsys, monkeypatch):
    monkeypatch.setattr("dida.machine.progress.EVERY", 0.0)
    with Progress(4, "labelling", "picture") as progress:
        progress.advance()
        progress.advance(3)
    first, last = capsys.readouterr().err.splitlines()
    assert first.startswith("labelling: 1 of 4 pictures, ")
    assert last.startswith("labelling: 4 of 4 pictures, ")
    assert last.endswith("0:00:00 to go")
