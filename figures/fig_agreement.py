"""How far the points of the path agree with the zero-shot model on every test set, of a run with --agreement.

python figures/fig_agreement.py runs/mine --out figures
"""

from sharpscope.study.figures.script import figure_script

main = figure_script("agreement", __doc__)

if __name__ == "__main__":
    main()
