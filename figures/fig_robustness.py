"""Effective robustness: OOD against ID accuracy on logit axes, with the line that a baseline draws.

python figures/fig_robustness.py runs/demo --out figures
"""

from sharpscope.study.figures.script import figure_script

main = figure_script("robustness", __doc__)

if __name__ == "__main__":
    main()
