"""CLIPFit's analysis: the relative change of every tensor that fine-tuning moves, by depth in its tower.

From the CSV file of 'sharpscope inspect ZEROSHOT FINETUNED --granularity tensor --out FILE', one row per tensor.

python figures/paper_clipfit_change.py changes.csv --out figures
"""

from sharpscope.study.figures.script import figure_script

main = figure_script("paper_clipfit_change", __doc__)

if __name__ == "__main__":
    main()
