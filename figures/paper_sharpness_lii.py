"""In Search of the Successful Interpolation: probe loss along the path with its instability (LII) and its barrier.

From tables/path.csv. Alpha is the weight of the fine-tuned model, as everywhere in sharpscope.

python figures/paper_sharpness_lii.py runs/demo --out figures
"""

from sharpscope.study.figures.script import figure_script

main = figure_script("paper_sharpness_lii", __doc__)

if __name__ == "__main__":
    main()
