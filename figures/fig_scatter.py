"""Whole-model sharpness and OOD gain over zero-shot, one point per pair; it takes three pairs.

python figures/fig_scatter.py runs/demo --out figures
"""

from sharpscope.study.figures.script import figure_script

main = figure_script("correlation_scatter", __doc__)

if __name__ == "__main__":
    main()
