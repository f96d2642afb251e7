"""VRF's figure: the ratio of the fine-tuned to the zero-shot accuracy by the images' distance to zero-shot failures.

From tables/vrf.csv (sharpscope run --output-baselines vrf) and accuracy.csv, which says which sets are ID.

python figures/paper_vrf_ratio.py runs/demo --out figures
"""

from sharpscope.study.figures.script import figure_script

main = figure_script("paper_vrf_ratio", __doc__)

if __name__ == "__main__":
    main()
