"""CLIPFit's and CoOp's few-shot figure: accuracy by the number of training images per class and by method.

From tables/few_shot.csv of one run of 'sharpscope protocol few-shot'.

python figures/paper_clipfit_shots.py runs/few-shot --out figures
"""

from sharpscope.study.figures.script import figure_script

main = figure_script("paper_clipfit_shots", __doc__)

if __name__ == "__main__":
    main()
