"""WiSE-FT, figs. 17 to 19: accuracy against the number of training images per class, and what the path adds to it.

From tables/accuracy.csv of one run for each number of images, named K=RUN. Several pairs of a run count as seeds. The
paper draws the best alpha too, which looks at the test sets: here the point of the path is fixed.

python figures/paper_wiseft_shots.py 1=runs/k1 5=runs/k5 25=runs/k25 --alpha 0.5 --out figures
"""

from sharpscope.study.figures.script import figure_script

main = figure_script("paper_wiseft_shots", __doc__)

if __name__ == "__main__":
    main()
