"""What a maintainer calls, behind one command: python -m tools (see --help).

canonical    one form for every notebook, whatever machine and front end it comes from
run          execute a lecture from top to bottom and write it back
check        the rules that every lecture keeps
pages        the measure of a page: how many cells, lines, words, figures, slides
slides       where the slides break, and what they leave out
student      the student edition: the course without the solutions
publish      stamp the repository's address into notebooks, set-up cell and README
readme       the table of results in the README, made from the committed records
errata       data/errata.md, made from the tests of the lecture text's claims
adopt        renew the committed records and weights from the last runs
export       the benchmark as PNG and COCO JSON
setup_cell   the first code cell of every lecture, kept once
"""
