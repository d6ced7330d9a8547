from __future__ import annotations

import csv
import io

from up.csv_text import write_rows


def test_names_with_marks_of_csv_are_read_as_they_were_written() -> None:
    names = ["plain", "a,b", 'quote"d', "line\nfeed", "carriage\rreturn", "both\r\n", " space ", "tab\t", "\u2028", "'", "\r", ""]
    text = io.StringIO(newline="")
    write_rows(text, [[name, 1, None] for name in names])
    assert [row[0] for row in csv.reader(io.StringIO(text.getvalue(), newline=""), strict=True)] == names
    assert text.getvalue().startswith("plain,1,\n")
