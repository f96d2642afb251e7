"""Accuracy of every data set and the probe loss along alpha, with a bar where flag F2 finds a point below both ends.

python figures/fig_path.py runs/demo --out figures
"""

from sharpscope.study.figures.script import figure_script

main = figure_script("accuracy_along_alpha", __doc__)

if __name__ == "__main__":
    main()
