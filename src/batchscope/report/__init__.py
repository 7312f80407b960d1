"""What was found, for a reader? Numbers first (figures.py), drawing after (charts.py), words last (words.py).

    html.write_report(result, data, path)       one self-contained page
    terminal.print_study(result, console)       the same answer as text

Everything here reads records alone: a report is drawn on a laptop that has no torch.
"""
