"""Tables and figures of the notebooks."""

import re

from radvision_utils.figures import text_table


def test_headers_and_texts_of_a_table_stand_on_one_line_from_the_left():
    html = text_table([{"study": "17", "report": "<b>clear</b>"}]).data
    cells = re.findall(r"<t[hd](?: [^>]*)?>", html)
    assert len(cells) == 4
    assert all('style="text-align:left' in cell for cell in cells)
    assert "&lt;b&gt;clear" in html
