"""Write invoices.csv and the PDFs that it names: `python sample_data/make_invoices.py`."""  # noqa: INP001  (a script)

import csv
from collections.abc import Sequence
from pathlib import Path

FOLDER = Path(__file__).resolve().parent
INVOICES = (
    ("a-1041.pdf", "2024-03-04", "Ferncliff Paper", "A-1041", "2024-03-01", "412.50", "EUR", "31 Mar"),
    ("a-1042.pdf", "2024-03-07", "Ferncliff Paper", "A-1042", "2024-03-05", "96.00", "EUR", "4 Apr"),
    ("scan_0007.pdf", "2024-03-11", "Oakhurst Lifts Ltd", "2024/118", "2024-02-28", "1890.00", "GBP", "on receipt"),
    ("tidewater.pdf", "2024-03-15", "Tidewater Catering", "TC-77", "2024-03-14", "238.40", "USD", "13 Apr"),
    ("printer.pdf", "2024-03-18", "Halden Print Works", "5520", "2024-03-17", "64.99", "EUR", "17 Apr"),
    ("window-cleaning.pdf", "2024-03-21", "Brightpane", "BP-0300", "2024-03-20", "150.00", "GBP", "3 Apr"),
)


def pdf(lines: Sequence[str]) -> bytes:
    """Return a PDF of one page with these lines, in Latin-1."""
    escaped = (line.replace("\\", "\\\\").replace("(", "\\(").replace(")", "\\)") for line in lines)
    shown = "".join(f"({line}) Tj T*\n" for line in escaped)
    content = f"BT /F1 12 Tf 16 TL 72 770 Td\n{shown}ET".encode("latin-1")
    objects = (
        b"<< /Type /Catalog /Pages 2 0 R >>",
        b"<< /Type /Pages /Kids [3 0 R] /Count 1 >>",
        b"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 595 842] /Contents 4 0 R /Resources 6 0 R >>",
        b"<< /Length %d >>\nstream\n%s\nendstream" % (len(content), content),
        b"<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica /Encoding /WinAnsiEncoding >>",
        b"<< /Font << /F1 5 0 R >> >>",
    )
    written = b"%PDF-1.4\n"
    offsets = []
    for number, body in enumerate(objects, 1):
        offsets.append(len(written))
        written += b"%d 0 obj\n%s\nendobj\n" % (number, body)
    table = b"".join(b"%010d 00000 n \n" % offset for offset in offsets)
    head = b"xref\n0 %d\n0000000000 65535 f \n" % (len(objects) + 1)
    trailer = b"trailer\n<< /Size %d /Root 1 0 R >>\nstartxref\n%d\n%%%%EOF\n" % (len(objects) + 1, len(written))
    return written + head + table + trailer


def main() -> None:
    """Write the files."""
    (FOLDER / "invoices").mkdir(exist_ok=True)
    with (FOLDER / "invoices.csv").open("w", encoding="utf-8", newline="") as file:
        rows = csv.writer(file, lineterminator="\n")
        rows.writerow(("file", "received"))
        for name, received, supplier, number, issued, total, currency, due in INVOICES:
            rows.writerow((name, received))
            lines = ["INVOICE", "", f"Supplier: {supplier}", f"Number: {number}", f"Issued: {issued}"]
            lines += [f"Total: {total}", f"Currency: {currency}", "", f"Payable: {due}"]
            (FOLDER / "invoices" / name).write_bytes(pdf(lines))


if __name__ == "__main__":
    main()
