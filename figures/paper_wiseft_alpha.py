"""WiSE-FT, fig. 6: accuracy on every data set along alpha, with the chord between the ends; one panel per set.

From tables/accuracy.csv. The paper draws the mean over its shifts; here every shift has a panel too.

python figures/paper_wiseft_alpha.py runs/demo --out figures
"""

from sharpscope.study.figures.script import figure_script

main = figure_script("paper_wiseft_alpha", __doc__)

if __name__ == "__main__":
    main()
