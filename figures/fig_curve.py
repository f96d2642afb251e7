"""WiSE-FT curve: OOD against ID accuracy along the path of every pair of a run.

python figures/fig_curve.py runs/demo --out figures
"""

from sharpscope.study.figures.script import figure_script

main = figure_script("wiseft_curve", __doc__)

if __name__ == "__main__":
    main()
