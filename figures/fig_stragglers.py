"""Straggler scores of every layer by criterion, with threshold, chosen layers and bootstrap probability.

python figures/fig_stragglers.py runs/demo --criteria sharpness:hessian_trace rewind --out figures
"""

from sharpscope.study.figures.script import figure_script

main = figure_script("straggler_ranking", __doc__)

if __name__ == "__main__":
    main()
